//! Several models in one engine: each answers as it does alone, and they come and go under load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what must hold by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vecmill_engine::ModelRef;
use vecmill_engine::{
    Builder, Engine, MemoryStatistics, ModelState, Request, RequestError, StartError,
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
