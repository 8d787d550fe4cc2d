//! A running engine on a small model: answers, limits, errors, cancellation, shutdown.

#![expect(clippy::unwrap_used, reason = "a test says what must hold by panicking")]

#[path = "support/block_on.rs"]
mod block_on;

use std::path::Path;

use block_on::block_on;
use vecmill_engine::ModelRef;
use vecmill_engine::capacity::{DType, FitError, Target};
use vecmill_engine::{
    Builder, DeviceSpec, Engine, Fault, Input, Keep, MemoryBudget, Prompt, Request, RequestError,
    StartError, Token, TokenizeRequest, Truncation,
};

fn builder(model: &str) -> Builder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model);
    Engine::builder()
        .model(ModelRef::Folder(folder))
        .devices(vec![DeviceSpec::CPU])
        .cpu_threads(2)
        .tokenization_workers(2)
}

fn engine() -> Engine {
    builder("bert-mean").start().unwrap()
}

fn embed(engine: &Engine, text: &str) -> Vec<f32> {
    let reply = engine.embed_blocking(Request::new([text])).unwrap();
    reply.embeddings[0].vector.clone()
}

fn error(engine: &Engine, request: Request) -> RequestError {
    engine.embed_blocking(request).unwrap_err()
}

/// Tells when it is dropped.
struct Told(std::sync::mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn one_text_gives_its_vector() {
    let engine = builder("electra-narrow").start().unwrap();
    let vector = block_on(engine.embed_text("a quick brown fox")).unwrap();
    let reply = engine.embed_blocking(Request::new(["a quick brown fox"])).unwrap();
    assert_eq!(vector, reply.embeddings[0].vector);
}

#[test]
fn what_a_request_keeps_is_dropped_when_the_engine_has_let_go_of_it() {
    let engine = engine();
    let (sender, dropped) = std::sync::mpsc::channel();
    let request = |texts: usize| Request {
        keep: Keep::new(Told(sender.clone())),
        ..Request::new(vec!["a quick brown fox"; texts])
    };
    let patience = std::time::Duration::from_secs(20);
    // Answered, refused and given up while it was at work.
    engine.embed_blocking(request(3)).unwrap();
    dropped.recv_timeout(patience).unwrap();
    engine.embed_blocking(request(0)).unwrap_err();
    dropped.recv_timeout(patience).unwrap();
    drop(engine.embed(request(2000)));
    dropped.recv_timeout(patience).unwrap();
    // A clone of it is with the caller, as of the request.
    let mine = request(1);
    engine.embed_blocking(mine.clone()).unwrap();
    assert_eq!(mine, request(1));
    dropped.recv_timeout(patience).unwrap(); // of the request that was compared
    drop(mine);
    dropped.recv_timeout(patience).unwrap();
    assert!(dropped.try_recv().is_err());
}

#[test]
fn answers_come_in_the_order_of_the_inputs_and_do_not_depend_on_neighbours() {
    let engine = engine();
    let texts: Vec<String> =
        (0..500).map(|i| "all human beings ".repeat(1 + i % 9) + &i.to_string()).collect();
    let reply = engine.embed_blocking(Request::new(texts.clone())).unwrap();
    assert_eq!(reply.embeddings.len(), texts.len());
    for index in [0, 1, 31, 32, 33, 250, 499] {
        assert_eq!(reply.embeddings[index].vector, embed(&engine, &texts[index]), "input {index}");
    }
    assert!(reply.timings.total >= reply.timings.inference);
}

#[test]
fn concurrent_callers_each_get_their_own() {
    let engine = engine();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let engine = engine.clone();
            scope.spawn(move || {
                let text = format!("everyone has the right to {thread}");
                let expected = embed(&engine, &text);
                for _ in 0..50 {
                    assert_eq!(
                        block_on(engine.embed(Request::new([text.as_str()]))).unwrap().embeddings
                            [0]
                        .vector,
                        expected
                    );
                }
            });
        }
    });
}

#[test]
fn long_inputs_are_cut_or_refused_and_the_reply_tells() {
    let engine = engine();
    let limit = engine.info().max_input_tokens;
    let long = "freedom of thought ".repeat(limit);
    let ask = |truncation| Request { truncation, ..Request::new([long.as_str(), "freedom"]) };
    let end = engine.embed_blocking(ask(Truncation::End)).unwrap();
    let start = engine.embed_blocking(ask(Truncation::Start)).unwrap();
    for reply in [&end, &start] {
        assert_eq!(reply.embeddings[0].tokens, limit);
        assert!(reply.embeddings[0].truncated && !reply.embeddings[1].truncated);
        assert!(reply.embeddings[1].tokens < limit);
    }
    assert_ne!(end.embeddings[0].vector, start.embeddings[0].vector);
    let refused = error(&engine, ask(Truncation::Refuse));
    assert!(
        matches!(refused, RequestError::TooManyTokens { index: 0, tokens, limit: l } if tokens > l)
    );
}

#[test]
fn token_ids_give_the_same_vector_as_their_text() {
    let engine = engine();
    let text = "Everyone has the right to education.";
    let texts = vec![text.to_owned()];
    let request = TokenizeRequest { texts, special_tokens: true, ..TokenizeRequest::default() };
    let listed = engine.tokenize_blocking(request).unwrap();
    let tokens: Vec<Token<'_>> = (0..).map_while(|n| listed.token(0, n)).collect();
    assert_eq!(tokens.len(), listed.count(0));
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let reply = engine.embed_blocking(Request::new([Input::Tokens(ids)])).unwrap();
    assert_eq!(reply.embeddings[0].vector, embed(&engine, text));
    let words: Vec<&str> = tokens.iter().filter_map(|t| text.get(t.span.clone()?)).collect();
    assert_eq!(words.concat(), text.replace(' ', ""));
    assert!(tokens[0].special && tokens[0].span.is_none());
}

#[test]
fn as_many_lists_of_tokens_are_held_as_there_are_threads_to_make_them() {
    let engine = engine(); // with two
    let list = || {
        let texts = vec!["and".to_owned()];
        engine.tokenize_blocking(TokenizeRequest { texts, ..TokenizeRequest::default() })
    };
    let (first, _second) = (list().unwrap(), list().unwrap());
    assert_eq!(list().unwrap_err(), RequestError::TokenizersBusy { places: 2 });
    drop(first);
    assert_eq!(list().unwrap().count(0), 1);
}

#[test]
fn vectors_are_cut_and_normalised_as_asked() {
    let engine = engine();
    let ask = |dimensions, normalize| {
        let request = Request { dimensions, normalize, ..Request::new(["dignity and rights"]) };
        engine.embed_blocking(request).unwrap().embeddings[0].vector.clone()
    };
    let length = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let (whole, cut, raw) = (ask(None, None), ask(Some(8), None), ask(Some(8), Some(false)));
    assert_eq!((whole.len(), cut.len()), (engine.info().dimensions, 8));
    assert!((length(&whole) - 1.0).abs() < 1e-6 && (length(&cut) - 1.0).abs() < 1e-6);
    let scale = length(&raw);
    assert!((scale - 1.0).abs() > 1e-3, "the model's raw vectors have another length");
    for (raw, cut) in raw.iter().zip(&cut) {
        assert!((raw / scale - cut).abs() < 1e-6);
    }
}

#[test]
fn callers_mistakes_are_named_as_theirs() {
    let engine = engine();
    let vocabulary = 1_000_000;
    let mistakes = [
        (Request::new(Vec::<String>::new()), RequestError::NoInputs),
        (Request::new(["a", ""]), RequestError::EmptyInput { index: 1 }),
        (Request::new([Input::Tokens(vec![])]), RequestError::EmptyInput { index: 0 }),
    ];
    for (request, expected) in mistakes {
        let found = error(&engine, request);
        assert_eq!((found.fault(), &found), (Fault::Caller, &expected));
    }
    let unknown = error(&engine, Request::new([Input::Tokens(vec![1, vocabulary])]));
    assert!(
        matches!(unknown, RequestError::UnknownToken { index: 0, token, .. } if token == vocabulary)
    );
    for asked in [0, 33] {
        let request = Request { dimensions: Some(asked), ..Request::new(["a"]) };
        assert_eq!(error(&engine, request), RequestError::Dimensions { asked, available: 32 });
    }
    let request = Request { prompt: Prompt::Named("query".into()), ..Request::new(["a"]) };
    assert!(matches!(error(&engine, request), RequestError::UnknownPrompt { .. }));
}

#[test]
fn a_prompt_goes_in_front_of_the_text() {
    let engine = engine();
    let request = Request { prompt: Prompt::Text("query: ".into()), ..Request::new(["asylum"]) };
    let reply = engine.embed_blocking(request).unwrap();
    assert_eq!(reply.embeddings[0].vector, embed(&engine, "query: asylum"));
}

#[test]
fn one_bad_request_does_not_harm_its_neighbours() {
    let engine = engine();
    let good = embed(&engine, "marriage and family");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (engine, good) = (engine.clone(), good.clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    if thread % 2 == 0 {
                        assert_eq!(embed(&engine, "marriage and family"), good);
                    } else {
                        assert_eq!(
                            error(&engine, Request::new(["x", ""])),
                            RequestError::EmptyInput { index: 1 }
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn a_full_queue_says_busy_at_once_and_recovers() {
    let engine = builder("bert-mean").queue_capacity(64).start().unwrap();
    let texts = || vec!["the right to rest and leisure ".repeat(20); 64];
    let waiting: Vec<_> = (0..4).map(|_| engine.embed(Request::new(texts()))).collect();
    let results: Vec<_> = waiting.into_iter().map(block_on).collect();
    let busy = |result: &Result<_, RequestError>| matches!(result, Err(error) if error.fault() == Fault::Load);
    assert!(results[0].is_ok());
    assert!(results.iter().any(busy), "none of four times the capacity was refused");
    assert!(results.iter().all(|result| result.is_ok() || busy(result)));
    assert_eq!(engine.embed_blocking(Request::new(texts())).unwrap().embeddings.len(), 64);
}

#[test]
fn callers_that_go_away_leave_nothing_behind() {
    let engine = builder("bert-mean").queue_capacity(4096).start().unwrap();
    for _ in 0..20 {
        drop(engine.embed(Request::new(vec!["social security ".repeat(30); 200])));
    }
    // Whatever the dropped requests held is free again once this one is answered, in order.
    assert_eq!(engine.embed_blocking(Request::new(vec!["a"; 96])).unwrap().embeddings.len(), 96);
    let mut metrics = String::new();
    engine.write_metrics(&mut metrics).unwrap();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("vecmill_queue_inputs "), 0.0);
    assert!(value("vecmill_requests_total{outcome=\"given_up\"") > 0.0, "{metrics}");
    assert_eq!(value("vecmill_memory_leased_bytes{"), 0.0);
}

#[test]
fn shutting_down_answers_what_was_accepted_and_refuses_the_rest() {
    let engine = engine();
    let accepted: Vec<_> =
        (0..8).map(|_| engine.embed(Request::new(vec!["nationality"; 100]))).collect();
    let closing = engine.clone();
    let closer = std::thread::spawn(move || closing.shutdown());
    for future in accepted {
        assert_eq!(block_on(future).unwrap().embeddings.len(), 100);
    }
    closer.join().unwrap();
    assert_eq!(error(&engine, Request::new(["late"])), RequestError::Stopped);
}

#[test]
fn every_tokenizer_family_works_end_to_end() {
    for model in ["bert-mean", "roberta-mean", "xlm-roberta-cls"] {
        let engine = builder(model).start().unwrap();
        for text in ["Human rights", "🎨 Îñtérnåtiônàl\0 ½", "人人生而自由", " ", "\u{feff}"]
        {
            let vector = embed(&engine, text);
            assert!(vector.iter().all(|value| value.is_finite()), "{model}: {text:?}");
        }
    }
}

#[test]
fn what_does_not_fit_the_budget_is_said_at_the_start() {
    let result = builder("bert-mean").memory_budget(1 << 20).start();
    let planned = builder("bert-mean").memory_budget(1 << 20).capacity(Target::CPU);
    assert_eq!(
        format!("{:?}", planned.unwrap_err()),
        format!("{:?}", result.as_ref().unwrap_err())
    );
    assert!(matches!(result, Err(StartError::Budget(_))), "{result:?}");
    let result = builder("bert-mean").default_prompt(Prompt::Named("none".into())).start();
    assert!(matches!(result, Err(StartError::Setting { setting: "default prompt", .. })));
    let result = builder("bert-mean").cpu_threads(0).start();
    assert!(matches!(result, Err(StartError::Setting { .. })));
    assert!(builder("no-such-model").start().is_err());
}

#[test]
fn devices_that_can_t_be_used_are_said_at_the_start() {
    let on = |devices: &[DeviceSpec]| builder("bert-mean").devices(devices.to_vec());
    for devices in [&[][..], &[DeviceSpec::CPU, DeviceSpec::CPU]] {
        let result = on(devices).start();
        assert!(matches!(result, Err(StartError::Setting { setting: "device", .. })), "{result:?}");
    }
    for absent in ["cuda:99", "cuda:0/sms=8"] {
        let result = on(&[DeviceSpec::CPU, absent.parse().unwrap()]).start();
        let Err(StartError::NoDevice { device, .. }) = result else { panic!("{result:?}") };
        assert_eq!(device, absent);
    }
    let half = on(&[DeviceSpec::CPU]).dtype(DType::F16).start();
    assert!(matches!(half, Err(StartError::Setting { setting: "dtype", .. })), "{half:?}");

    let engine = on(&[DeviceSpec::AUTO]).memory_budget(MemoryBudget::Percent(50)).start().unwrap();
    assert!(!engine.info().devices.is_empty());
}

#[test]
fn the_plan_and_the_server_agree() {
    for mib in [6, 8, 16, 4096] {
        let builder = builder("bert-mean").memory_budget(mib << 20);
        let plan = builder.capacity(Target::CPU).unwrap();
        let engine = builder.start().unwrap();
        assert_eq!(plan.fit.largest.tokens, engine.info().max_batch_tokens);
        assert_eq!(plan.max_input_tokens, engine.info().max_input_tokens);
        let memory = &engine.memory()[0].1;
        assert_eq!(plan.fit.budget_bytes, memory.budget_bytes);
        assert_eq!(plan.fit.weights_bytes, memory.reserved_bytes);
        // Inputs of one token each make the batch whose slab is largest.
        let inputs = vec![Input::Tokens(vec![7]); plan.fit.largest.tokens];
        engine.embed_blocking(Request::new(inputs)).unwrap();
        let memory = &engine.memory()[0].1;
        assert!(memory.peak_held_bytes <= memory.budget_bytes - memory.reserved_bytes);
        assert_eq!((memory.overruns, memory.leases.refused), (0, 0), "{mib} MiB");
    }
}

#[test]
fn a_plan_for_a_gpu_needs_none_but_a_budget() {
    let gpu = builder("bert-mean").memory_budget(1 << 30).capacity(Target::GPU).unwrap();
    assert_eq!((gpu.fit.in_flight, gpu.fit.largest.tokens), (2, 16_384));
    assert_eq!(gpu.target.dtype(), "float16");
    let unknown = builder("bert-mean").capacity(Target::GPU);
    assert!(matches!(unknown, Err(StartError::Setting { setting: "memory budget", .. })));
    let small = builder("bert-mean").memory_budget(1 << 20).capacity(Target::GPU).unwrap_err();
    let StartError::Budget(FitError::TooSmall { missing_bytes, .. }) = small else {
        panic!("{small}");
    };
    let enough = builder("bert-mean").memory_budget((1 << 20) + missing_bytes);
    assert_eq!(enough.capacity(Target::GPU).unwrap().fit.headroom_bytes, 0);
}

#[test]
fn memory_is_given_back_on_demand_and_its_leases_are_recorded() {
    let engine = engine();
    embed(&engine, "rest and leisure");
    assert!(engine.memory()[0].1.idle_bytes > 0);
    let trimmed = engine.trim_memory();
    assert_eq!(trimmed[0].0, "cpu");
    assert!(trimmed[0].1 > 0);
    assert_eq!(engine.memory()[0].1.held_bytes, 0);
    let recordings = engine.memory_recordings();
    let events = &recordings[0].1.events;
    let what = "the trial lease, the practice texts and one batch, each leased and returned";
    assert_eq!(events.len(), 6, "{what}");
}
