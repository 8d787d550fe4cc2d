//! Several models in one engine: each answers as it does alone, and they come and go under load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

#[path = "support/block_on.rs"]
mod block_on;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use block_on::block_on;
use vecmill_engine::{
    Builder, Engine, MemoryStatistics, ModelRef, ModelState, Priority, Request, RequestError,
    Stage, StartError, TokenizeRequest,
};

const MODELS: [&str; 4] = ["bert-mean", "roberta-mean", "bert-cls", "xlm-roberta-cls"];
const TEXTS: [&str; 3] = ["Hello, world!", "good morning to you all", "1 2 3"];

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(model)
}

fn model(model: &str) -> ModelRef {
    ModelRef::Folder(folder(model))
}

fn name(model: &str) -> String {
    folder(model).display().to_string()
}

/// On the CPU, with a place for what is kept.
fn builder(cache: &Path) -> Builder {
    Engine::builder()
        .devices(vec!["cpu".parse().unwrap()])
        .cpu_threads(1)
        .cache(cache.to_owned())
        .memory_budget(1 << 30)
}

/// Ends what runs beside a test, also when that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn ask(engine: &Engine, model: Option<&str>) -> Result<Vec<Vec<f32>>, RequestError> {
    let request = Request { model: model.map(name), ..Request::new(TEXTS) };
    let reply = engine.embed_blocking(request)?;
    Ok(reply.embeddings.into_iter().map(|embedding| embedding.vector).collect())
}

fn memory(engine: &Engine) -> MemoryStatistics {
    engine.memory()[0].1.clone()
}

#[test]
fn each_model_answers_as_it_does_alone() {
    let cache = tempfile::tempdir().unwrap();
    let both = builder(cache.path()).model(model(MODELS[0])).model(model(MODELS[1]));
    let both = both.start().unwrap();
    let mut answers = Vec::new();
    for each in &MODELS[..2] {
        let alone = builder(cache.path()).model(model(each)).start().unwrap();
        let expected = ask(&alone, None).unwrap();
        assert_eq!(ask(&both, Some(each)).unwrap(), expected, "{each}");
        answers.push(expected);
    }
    assert_ne!(answers[0], answers[1]);
    assert_eq!(ask(&both, None).unwrap(), answers[0], "who names none asks the first");
    let names: Vec<String> = both.models().into_iter().map(|model| model.name).collect();
    assert_eq!(names, [name(MODELS[0]), name(MODELS[1])]);
    let error = ask(&both, Some("another")).unwrap_err();
    assert!(
        matches!(&error, RequestError::UnknownModel { known, .. } if *known == names),
        "{error}"
    );
}

#[test]
fn models_come_and_go_under_load_and_nothing_is_lost_or_kept() {
    let cache = tempfile::tempdir().unwrap();
    let engine = builder(cache.path()).model(model(MODELS[0])).start().unwrap();
    let expected = ask(&engine, None).unwrap();
    let other = builder(cache.path()).model(model(MODELS[1])).start().unwrap();
    let of_other = ask(&other, None).unwrap();
    engine.trim_memory();
    let before = memory(&engine);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let steady: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    while !over.load(Ordering::Acquire) {
                        assert_eq!(ask(&engine, None).unwrap(), expected);
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        // Asks for a model that comes and goes: it has the answer, or hears that there is none.
        let fickle = scope.spawn(|| {
            let (mut answered, mut refused) = (0, 0);
            while !over.load(Ordering::Acquire) {
                match ask(&engine, Some(MODELS[1])) {
                    Ok(vectors) => {
                        assert_eq!(vectors, of_other);
                        answered += 1;
                    }
                    Err(RequestError::UnknownModel { .. } | RequestError::ModelLoading { .. }) => {
                        refused += 1;
                        thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (answered, refused)
        });
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                let MemoryStatistics { budget_bytes, reserved_bytes, held_bytes, .. } =
                    memory(&engine);
                assert!(reserved_bytes + held_bytes <= budget_bytes);
                thread::yield_now();
            }
        });
        let ends = Ends(&over);
        for _ in 0..5 {
            let loaded = engine.load(model(MODELS[1])).unwrap();
            assert_eq!(loaded, name(MODELS[1]));
            assert_eq!(ask(&engine, Some(MODELS[1])).unwrap(), of_other);
            assert!(memory(&engine).reserved_bytes > before.reserved_bytes);
            assert!(engine.unload(&loaded) && !engine.unload(&loaded));
            assert_eq!(memory(&engine).reserved_bytes, before.reserved_bytes);
        }
        drop(ends);
        assert!(steady.into_iter().all(|thread| thread.join().unwrap() > 0));
        assert!(fickle.join().unwrap().1 > 0);
        watch.join().unwrap();
    });
    engine.trim_memory();
    let after = memory(&engine);
    assert_eq!(
        (after.reserved_bytes, after.held_bytes),
        (before.reserved_bytes, before.held_bytes)
    );
}

#[test]
fn where_memory_is_lacking_the_least_recently_used_model_makes_way_unless_it_is_pinned() {
    let cache = tempfile::tempdir().unwrap();
    let two = builder(cache.path()).model(model(MODELS[0])).model(model(MODELS[1]));
    // What two take, and the longest input of either.
    let engine = two.clone().max_batch_tokens(64).start().unwrap();
    let needed = memory(&engine).reserved_bytes + memory(&engine).peak_held_bytes;
    drop(engine);
    let engine = two.memory_budget(needed).start().unwrap();
    ask(&engine, Some(MODELS[1])).unwrap();
    ask(&engine, Some(MODELS[0])).unwrap();
    let third = engine.load(model(MODELS[2])).unwrap();
    let names = |engine: &Engine| -> Vec<String> {
        assert!(engine.models().iter().all(|model| model.state == ModelState::Ready));
        engine.models().into_iter().map(|model| model.name).collect()
    };
    assert_eq!(names(&engine), [name(MODELS[0]), third.clone()]);
    ask(&engine, Some(MODELS[2])).unwrap();
    ask(&engine, Some(MODELS[0])).unwrap();

    assert!(engine.pin(&third, true) && engine.pin(&name(MODELS[0]), true));
    let error = engine.load(model(MODELS[3])).unwrap_err();
    assert!(matches!(error, StartError::Budget(_) | StartError::Memory(_)), "{error}");
    assert!(error.to_string().contains("bytes"), "{error}");
    assert_eq!(names(&engine), [name(MODELS[0]), third.clone()], "all is as before");
    ask(&engine, Some(MODELS[0])).unwrap();

    assert!(engine.pin(&name(MODELS[0]), false) && !engine.pin("another", true));
    let fourth = engine.load(model(MODELS[3])).unwrap();
    assert_eq!(names(&engine), [third, fourth]);
    ask(&engine, Some(MODELS[3])).unwrap();
    ask(&engine, None).unwrap();
}

#[test]
fn what_can_not_be_loaded_leaves_nothing_behind() {
    let cache = tempfile::tempdir().unwrap();
    let engine = builder(cache.path()).model(model(MODELS[0])).start().unwrap();
    let before = memory(&engine).reserved_bytes;
    let twice = engine.load(model(MODELS[0])).unwrap_err();
    assert!(twice.to_string().contains("loaded already"), "{twice}");
    let missing = cache.path().join("missing");
    engine.load(ModelRef::Folder(missing)).unwrap_err();
    assert_eq!((engine.models().len(), memory(&engine).reserved_bytes), (1, before));
    // The last one may go, too: then all are refused, until one is there again.
    assert!(engine.unload(&name(MODELS[0])));
    assert!(ask(&engine, None).is_err() && engine.readiness().is_err());
    assert_eq!(memory(&engine).reserved_bytes, 0);
    engine.load(model(MODELS[1])).unwrap();
    engine.readiness().unwrap();
    ask(&engine, None).unwrap();
}

/// The sum of the samples of a metric with a label `model`.
fn counted(engine: &Engine, metric: &str, model: &str) -> Option<f64> {
    let mut text = String::new();
    engine.write_metrics(&mut text).unwrap();
    let label = format!("model=\"{}\"", name(model));
    let lines = text.lines().filter(|line| line.starts_with(metric) && line.contains(&label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).reduce(|a, b| a + b)
}

#[test]
fn each_model_tells_of_itself_and_shows_its_tokens() {
    let cache = tempfile::tempdir().unwrap();
    let both = builder(cache.path()).model(model(MODELS[0])).model(model(MODELS[1]));
    let both = both.start().unwrap();
    for each in &MODELS[..2] {
        let alone = builder(cache.path()).model(model(each)).start().unwrap();
        assert_eq!(*both.info_of(Some(&name(each))).unwrap(), *alone.info());
        let tokens = |engine: &Engine, model: Option<String>| {
            let texts = TEXTS.map(str::to_owned).to_vec();
            let request = TokenizeRequest { model, texts, ..TokenizeRequest::default() };
            let listed = engine.tokenize_blocking(request).unwrap();
            let of =
                |text| (0..).map_while(|n| listed.token(text, n)).map(|token| token.id).collect();
            (0..TEXTS.len()).map(of).collect::<Vec<Vec<u32>>>()
        };
        assert_eq!(tokens(&both, Some(name(each))), tokens(&alone, None), "{each}");
    }
    let unknown = both.info_of(Some("another")).unwrap_err();
    assert!(matches!(unknown, RequestError::UnknownModel { .. }), "{unknown}");
}

#[test]
fn what_models_do_is_counted_apart_while_they_are_there() {
    let cache = tempfile::tempdir().unwrap();
    let engine = builder(cache.path()).model(model(MODELS[0])).model(model(MODELS[1]));
    let engine = engine.start().unwrap();
    for _ in 0..3 {
        ask(&engine, None).unwrap();
    }
    let requests = "vecmill_requests_total{outcome=\"ok\"";
    assert_eq!(counted(&engine, requests, MODELS[0]), Some(3.0));
    assert_eq!(counted(&engine, "vecmill_inputs_total", MODELS[0]), Some(9.0));
    // Its practice is work, too.
    let before = counted(&engine, "vecmill_tokens_total", MODELS[1]).unwrap();
    ask(&engine, Some(MODELS[1])).unwrap();
    assert!(counted(&engine, "vecmill_tokens_total", MODELS[1]).unwrap() > before);
    ask(&engine, Some("another")).unwrap_err();
    assert_eq!(counted(&engine, "vecmill_", "another"), None, "callers make no labels");
    assert!(engine.unload(&name(MODELS[1])));
    assert_eq!(counted(&engine, "vecmill_", MODELS[1]), None);
    assert_eq!(counted(&engine, requests, MODELS[0]), Some(3.0));
}

/// Holds models up in the middle of their loading.
struct Gate {
    shut: Arc<AtomicBool>,
    arrived: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Gate {
    fn on(builder: Builder) -> (Builder, Self) {
        let shut = Arc::new(AtomicBool::new(false));
        let (arrive, arrived) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let (closed, may_go) = (Arc::clone(&shut), Mutex::new(may_go));
        let builder = builder.on_progress(Arc::new(move |stage| {
            if matches!(stage, Stage::Loading { .. }) && closed.swap(false, Ordering::AcqRel) {
                arrive.send(()).unwrap();
                may_go.lock().unwrap().recv().unwrap();
            }
        }));
        (builder, Self { shut, arrived, go })
    }

    /// Has `meanwhile` happen while `engine` loads `model`; says what came of that.
    fn during<T>(
        &self,
        engine: &Engine,
        model: ModelRef,
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<String, StartError>, T) {
        thread::scope(|scope| {
            self.shut.store(true, Ordering::Release);
            let loading = scope.spawn(|| engine.load(model));
            self.arrived.recv().unwrap();
            let done = meanwhile();
            self.go.send(()).unwrap();
            (loading.join().unwrap(), done)
        })
    }
}

/// Asks for a model without waiting for the answer.
fn ask_beside(engine: &Engine, model: String) -> thread::JoinHandle<Result<usize, RequestError>> {
    let reply = engine.embed(Request { model: Some(model), ..Request::new(TEXTS) });
    thread::spawn(|| block_on(reply).map(|reply| reply.embeddings.len()))
}

#[test]
fn requests_for_a_model_that_is_loading_are_refused_at_once_or_wait_as_long_as_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let of = |wait| Gate::on(builder(cache.path()).model(model(MODELS[0])).load_wait(wait));
    let refused = |name: &str| Err(RequestError::ModelLoading { name: name.to_owned() });

    for wait in [Duration::ZERO, Duration::from_millis(20)] {
        let (builder, gate) = of(wait);
        let engine = builder.start().unwrap();
        let (loaded, answer) = gate.during(&engine, model(MODELS[1]), || {
            ask_beside(&engine, name(MODELS[1])).join().unwrap()
        });
        loaded.unwrap();
        assert_eq!(answer, refused(&name(MODELS[1])));
    }

    let (builder, gate) = of(Duration::from_secs(600));
    let engine = builder.queue_capacity(2 * TEXTS.len()).start().unwrap();
    let (loaded, answers) = gate.during(&engine, model(MODELS[1]), || {
        let first = ask_beside(&engine, name(MODELS[1]));
        // Nothing is kept of a caller who goes away.
        drop(engine.embed(Request { model: Some(name(MODELS[1])), ..Request::new(TEXTS) }));
        let mut others: Vec<_> = (0..2).map(|_| ask_beside(&engine, name(MODELS[1]))).collect();
        let last = others.pop().unwrap();
        (first, others, last)
    });
    loaded.unwrap();
    let (first, others, last) = answers;
    assert_eq!(first.join().unwrap(), Ok(TEXTS.len()));
    let rest = others.into_iter().chain([last]).map(|answer| answer.join().unwrap());
    let full = |answer: &Result<usize, _>| *answer == refused(&name(MODELS[1]));
    assert!(rest.into_iter().any(|answer| full(&answer)), "more than fits the queue waited");

    // Where it can't be loaded after all, they hear that there is none.
    let copy = cache.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(folder(MODELS[2])).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_dir() {
            std::fs::create_dir(copy.join(file.file_name())).unwrap();
            for inner in std::fs::read_dir(file.path()).unwrap().map(Result::unwrap) {
                let to = copy.join(file.file_name()).join(inner.file_name());
                std::fs::copy(inner.path(), to).unwrap();
            }
        } else {
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    let called = copy.display().to_string();
    let (loaded, answer) = gate.during(&engine, ModelRef::Folder(copy.clone()), || {
        let answer = ask_beside(&engine, called.clone());
        let weights = std::fs::File::options().append(true).open(copy.join("model.safetensors"));
        weights.unwrap().set_len(10_000_000).unwrap();
        answer
    });
    loaded.unwrap_err();
    let error = answer.join().unwrap().unwrap_err();
    assert!(matches!(error, RequestError::UnknownModel { .. }), "{error}");
}

#[test]
fn a_model_that_comes_later_is_warmed_up_while_others_work() {
    let cache = tempfile::tempdir().unwrap();
    // Batches of each practice that came to its end.
    let stages = Arc::new(Mutex::new(Vec::new()));
    let practised = || std::mem::take(&mut *stages.lock().unwrap());
    let seen = Arc::clone(&stages);
    let with = |each: &str| {
        let seen = Arc::clone(&seen);
        let told = builder(cache.path()).model(model(each)).warm_up(true);
        let told = told.on_progress(Arc::new(move |stage| match stage {
            Stage::WarmingUp { done, total, .. } if done == total => {
                seen.lock().unwrap().push(total);
            }
            _ => {}
        }));
        told.start().unwrap()
    };
    drop(with(MODELS[2]));
    let alone = practised();
    assert_eq!(alone.len(), 1);
    let engine = with(MODELS[0]);
    practised();
    let expected = ask(&engine, None).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let steady = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Ordering::Acquire) {
                assert_eq!(ask(&engine, None).unwrap(), expected);
                answered += 1;
            }
            answered
        });
        let ends = Ends(&over);
        engine.load(model(MODELS[2])).unwrap();
        drop(ends);
        assert!(steady.join().unwrap() > 0);
    });
    assert_eq!(practised(), alone);
    let batches = counted(&engine, "vecmill_batches_total", MODELS[2]).unwrap();
    assert!(batches > 3.0 + 2.0, "more than the practice texts: {batches}");
}

#[test]
fn a_model_of_a_greater_share_is_done_sooner() {
    let cache = tempfile::tempdir().unwrap();
    let engine = builder(cache.path()).model(model(MODELS[0])).model(model(MODELS[2]));
    let wrong = engine.clone().share("any", 0.0).start().unwrap_err();
    assert!(matches!(wrong, StartError::Setting { setting: "share", .. }), "{wrong}");
    let engine = engine.share(&name(MODELS[2]), 4.0).max_batch_tokens(64).start().unwrap();
    let before = counted(&engine, "vecmill_inputs_total", MODELS[0]).unwrap_or_default();
    let texts = vec!["the right to rest and leisure"; 3000];
    let ask = |model: &str| {
        let priority = Priority::Bulk;
        engine.embed(Request { model: Some(name(model)), priority, ..Request::new(texts.clone()) })
    };
    let (light, heavy) = (ask(MODELS[0]), ask(MODELS[2]));
    block_on(heavy).unwrap();
    let done = counted(&engine, "vecmill_inputs_total", MODELS[0]).unwrap() - before;
    assert!(done < 0.7 * 3000.0, "{done} of 3000 beside four times the share");
    block_on(light).unwrap();
}
