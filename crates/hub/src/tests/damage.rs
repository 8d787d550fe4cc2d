//! Caches that were damaged, are in the way, or have no room.

use super::*;

/// A file, and what is done to it.
type Damage = (&'static str, fn(&Path));

fn truncate(file: &Path, size: u64) {
    fs::File::options().write(true).open(file).unwrap().set_len(size).unwrap();
}

/// Alters one byte in place, as a bad disk does: hard links to the file see it too.
fn alter(file: &Path) {
    let mut contents = fs::read(file).unwrap();
    *contents.last_mut().unwrap() ^= 1;
    fs::write(file, contents).unwrap();
}

fn is_whole(folder: &Path) -> bool {
    model_files().iter().all(|(name, contents)| fs::read(folder.join(name)).unwrap() == *contents)
}

#[test]
fn a_damaged_model_is_fetched_again() {
    let hub = FakeHub::start(model_files());
    let setup = Setup::new(&hub.endpoint);
    let folder = setup.fetch(ID).unwrap();
    let damages: [Damage; 6] = [
        ("model.safetensors", |file| truncate(file, 100)),
        ("model.safetensors", alter),
        ("2_Dense/model.safetensors", |file| truncate(file, 0)),
        ("tokenizer.json", alter),
        ("config.json", |file| fs::remove_file(file).unwrap()),
        ("1_Pooling", |folder| fs::remove_dir_all(folder).unwrap()),
    ];
    for (name, damage) in damages {
        damage(&folder.join(name));
        assert_eq!(setup.fetch(ID).unwrap(), folder, "{name}");
        assert!(is_whole(&folder), "{name}");
        assert_eq!(setup.cached(ID), ["main"]);
    }
    // Only what was damaged came again: a removed name was still in the hub's cache.
    let weights = format!("/{ID}/resolve/{COMMIT}/model.safetensors");
    let asked = hub.requests.lock().unwrap().iter().filter(|ask| ask.path == weights).count();
    assert_eq!((asked, hub.downloads("tokenizer.json")), (3, 2));
}

#[test]
fn a_damaged_model_that_cannot_be_fetched_again_is_an_error() {
    let hub = FakeHub::start(model_files());
    let mut setup = Setup::new(&hub.endpoint);
    let folder = setup.fetch(ID).unwrap();
    truncate(&folder.join(WEIGHTS_FILE), 100);
    setup.fetcher.hub.offline = true;
    let error = setup.fetch(ID).unwrap_err().to_string();
    assert!(error.contains("was published"), "{error}");
}

#[test]
fn a_cache_from_before_manifests_is_taken_over() {
    let hub = FakeHub::start(model_files());
    let mut setup = Setup::new(&hub.endpoint);
    let folder = setup.fetch(ID).unwrap();
    let requests = hub.requests.lock().unwrap().len();
    fs::remove_file(folder.join(".vecmill-files.json")).unwrap();
    assert_eq!(setup.fetch(ID).unwrap(), folder);
    assert_eq!(hub.requests.lock().unwrap().len(), requests);
    assert!(folder.join(".vecmill-files.json").exists());

    // Cut short, and with nothing to compare with but its own header.
    fs::remove_file(folder.join(".vecmill-files.json")).unwrap();
    truncate(&folder.join(WEIGHTS_FILE), 5000);
    assert!(is_whole(&setup.fetch(ID).unwrap()));
    setup.fetcher.hub.cache = Some(setup.home.path().join("other"));
    truncate(&folder.join(WEIGHTS_FILE), 5000);
    fs::write(folder.join(".vecmill-files.json"), "{").unwrap();
    assert!(is_whole(&setup.fetch(ID).unwrap()));
}

#[test]
fn a_copied_cache_is_hashed_once() {
    let hub = FakeHub::start(model_files());
    let setup = Setup::new(&hub.endpoint);
    let folder = setup.fetch(ID).unwrap();
    let manifest = fs::read(folder.join(".vecmill-files.json")).unwrap();
    // The same contents, written anew.
    let tokenizer = fs::read(folder.join("tokenizer.json")).unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let requests = hub.requests.lock().unwrap().len();
    setup.fetch(ID).unwrap();
    assert_eq!(hub.requests.lock().unwrap().len(), requests);
    assert_ne!(
        fs::read(folder.join(".vecmill-files.json")).unwrap(),
        manifest,
        "the time is noted"
    );
}

#[test]
fn what_is_in_the_way_of_a_model_is_replaced() {
    let hub = FakeHub::start(model_files());
    for in_the_way in ["main", ".partial-x"] {
        let setup = Setup::new(&hub.endpoint);
        let folder = setup.home.path().join("cache/models/owner--tiny");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(in_the_way), "").unwrap();
        assert!(is_whole(&setup.fetch(ID).unwrap()));
        assert_eq!(setup.cached(ID), ["main"]);
    }
}

#[test]
fn damage_in_the_hubs_cache_is_mended() {
    let hub = FakeHub::start(model_files());
    let mut setup = Setup::new(&hub.endpoint);
    setup.fetch(ID).unwrap();
    let snapshot = setup.fetcher.hub.snapshot(ID, "main").unwrap();
    let blob = |name: &str| snapshot.join(name).canonicalize().unwrap();
    let damages: [Damage; 5] = [
        ("model.safetensors", |file| truncate(file, 100)),
        ("model.safetensors", alter),
        ("tokenizer.json", alter),
        ("config.json", |file| fs::remove_file(file).unwrap()),
        ("modules.json", |file| fs::write(file, "[").unwrap()),
    ];
    for (index, (name, damage)) in damages.into_iter().enumerate() {
        damage(&blob(name));
        setup.fetcher.cache = Some(setup.home.path().join(index.to_string()));
        assert!(is_whole(&setup.fetch(ID).unwrap()), "{name}");
        assert!(is_whole(&snapshot), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_cache_that_is_no_folder_is_named() {
    let setup = Setup::new("http://127.0.0.1:9");
    let cache = setup.home.path().join("cache");
    fs::write(&cache, "").unwrap();
    let error = setup.fetch(ID).unwrap_err().to_string();
    assert!(error.contains(cache.to_str().unwrap()) && error.contains("VECMILL_CACHE"), "{error}");
}

#[cfg(unix)]
#[test]
fn names_that_are_not_text_are_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let hub = FakeHub::start(model_files());
    let mut setup = Setup::new(&hub.endpoint);
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9");
    setup.fetcher.cache = Some(setup.home.path().join(odd));
    setup.fetcher.hub.cache = Some(setup.home.path().join("hf").join(odd));
    let models = setup.home.path().join(odd).join("models/owner--tiny");
    fs::create_dir_all(models.join(odd)).unwrap();
    assert!(is_whole(&setup.fetch(ID).unwrap()));
}

#[cfg(unix)]
#[test]
fn a_model_for_which_there_is_no_room_is_not_begun() {
    let hub = FakeHub::otherwise(model_files(), |ask| {
        let tree = r#"[{"path": "model.safetensors", "size": 9000000000000000000}]"#;
        Act::answer(200, "", tree).filter(|_| ask.path.contains("/tree/"))
    });
    let setup = Setup::new(&hub.endpoint);
    let error = setup.fetch(ID).unwrap_err();
    assert!(matches!(error, FetchError::NoRoom(_)), "{error}");
    let words = error.to_string();
    assert!(words.contains("needed") && words.contains("free") && words.contains("hf"), "{words}");
    assert_eq!(hub.downloads("tokenizer.json"), 0);
}
