//! What a hub, and what stands before it, may answer: each with its own words, on each request.

use super::fake_hub::Files;
use super::*;

/// What fetching a small model from this hub comes to.
fn fetched(hub: &FakeHub) -> (Setup, Result<PathBuf, FetchError>) {
    let setup = Setup::new(&hub.endpoint);
    let fetched = setup.fetch(ID);
    (setup, fetched)
}

fn words(hub: &FakeHub) -> String {
    let (setup, fetched) = fetched(hub);
    let words = fetched.unwrap_err().to_string();
    assert!(!words.contains(SECRET), "{words}");
    assert!(words.lines().all(|line| line.len() < 500), "{words}");
    assert!(!words.trim_end().ends_with(':'), "{words}");
    assert!(setup.cached(ID).is_empty());
    words
}

/// The stages in which a fetch waited.
fn waits(setup: &Setup) -> Vec<(String, Duration)> {
    let stages = setup.stages.lock().unwrap();
    let waiting = |stage: &Stage| match stage {
        Stage::Waiting { reason, wait } => Some((reason.clone(), *wait)),
        _ => None,
    };
    stages.iter().filter_map(waiting).collect()
}

const ON_LIST: &str = "the list";
/// One of them small, one behind a redirect.
const PLACES: [&str; 4] = [ON_LIST, "modules.json", "tokenizer.json", "model.safetensors"];

/// A hub that does this whenever `place` is asked for.
fn at(place: &'static str, act: Option<Act>) -> FakeHub {
    FakeHub::otherwise(model_files(), move |ask| {
        let here = if place == ON_LIST { ask.is_list() } else { ask.is_for(place) };
        act.clone().filter(|_| here)
    })
}

#[test]
fn each_refusal_has_its_words_on_each_request() {
    let gated = "x-error-code: GatedRepo\r\n";
    let page = "content-type: text/html; charset=utf-8\r\n";
    for (status, lines, body, on_list, on_file) in [
        (401, "", r#"{"error": "no"}"#, "private", "does not give it (HTTP 401: no)"),
        (403, "", r#"{"error": "no"}"#, "private", "does not give it (HTTP 403: no)"),
        (401, gated, "", "consent", "consent"),
        (403, gated, "", "consent", "consent"),
        (404, "", "{}", "no such model", "lists this file but does not have it"),
        (404, "x-error-code: EntryNotFound\r\n", "", "no such model", "does not have it"),
        (451, "", r#"{"error": "law"}"#, "HTTP 451: law", "HTTP 451: law"),
        (403, page, "<html>", "not the hub", "not the hub"),
        (407, "", "", "HTTPS_PROXY", "HTTPS_PROXY"),
        (200, page, "<html>Log in</html>", "a web page", "a web page"),
        (302, "location: http://127.0.0.1:9/login\r\n", "", "127.0.0.1", "127.0.0.1"),
        (500, "", "", "a fault of its own (HTTP 500)", "a fault of its own (HTTP 500)"),
        (503, page, "<html>", "(HTTP 503)", "(HTTP 503)"),
        (429, "", "", "limits requests", "limits requests"),
    ] {
        for place in PLACES {
            let words = words(&at(place, Act::answer(status, lines, body)));
            let expected = if place == ON_LIST { on_list } else { on_file };
            assert!(words.contains(expected), "{status} {lines} at {place}: {words}");
            let names_it = place == ON_LIST || status == 407 || words.contains(place);
            assert!(names_it, "{status} {lines} at {place}: {words}");
        }
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    let limited = |after: &str| Act::answer(429, after, r#"{"error": "Too many requests"}"#);
    let past = "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    for act in [
        limited(""),
        limited("retry-after: 0\r\n"),
        limited(past),
        limited("ratelimit: \"resolvers\";r=0;t=0\r\n"),
        Act::answer(500, "", ""),
        Act::answer(502, "", "<html>"),
        Act::answer(503, "retry-after: 0\r\n", ""),
        Some(Act::Cut(0)),
        Some(Act::Cut(90)),
    ] {
        for place in PLACES {
            let act = act.clone();
            let is_cut = matches!(act, Some(Act::Cut(_)));
            let is_limit = matches!(act, Some(Act::Answer(429, ..)));
            let hub = FakeHub::otherwise(model_files(), move |ask| {
                let here = if place == ON_LIST { ask.is_list() } else { ask.is_for(place) };
                act.clone().filter(|_| here && ask.before < if is_limit { 3 } else { 1 })
            });
            let (setup, fetched) = fetched(&hub);
            // The first connection of all decides whether there is a hub.
            if is_cut && place == ON_LIST {
                assert!(fetched.is_err() || waits(&setup).len() == 1);
                continue;
            }
            let folder = fetched.unwrap();
            for (name, contents) in model_files() {
                assert_eq!(fs::read(folder.join(&name)).unwrap(), contents, "{name}");
            }
            assert_eq!(setup.cached(ID), ["main"]);
            assert!(!waits(&setup).is_empty());
        }
    }
}

#[test]
fn a_hub_that_says_how_long_is_waited_for_so_long() {
    let hub = FakeHub::otherwise(model_files(), |ask| {
        if ask.is_list() && ask.before == 0 {
            return Act::answer(429, "retry-after: 1\r\n", "{}");
        }
        None
    });
    let (setup, fetched) = fetched(&hub);
    fetched.unwrap();
    let [(reason, wait)] = &waits(&setup)[..] else { panic!("one wait") };
    assert!(reason.contains("limits requests") && *wait == Duration::from_secs(1), "{reason}");
}

#[test]
fn a_limit_that_lasts_is_given_up_with_what_to_do() {
    // Always; and once, but for longer than anybody waits.
    for after in ["retry-after: 0\r\n", "", "retry-after: 86400\r\n"] {
        for (token, advice) in [(None, "a token raises the limit"), (Some(SECRET), "this HF_TOKEN")]
        {
            let hub = at("tokenizer.json", Act::answer(429, after, "{}"));
            let mut setup = Setup::new(&hub.endpoint);
            setup.fetcher.hub.token =
                Hub::from_env(token.map(str::to_owned)).token.filter(|_| token.is_some());
            let words = setup.fetch(ID).unwrap_err().to_string();
            assert!(words.contains("limits requests") && words.contains(advice), "{words}");
            let asked = hub.downloads("tokenizer.json");
            let (times, told) =
                if after.contains("86400") { (1, "86400 s") } else { (7, "7 times") };
            assert!(asked == times && words.contains(told), "{asked}: {words}");
        }
    }
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let hub = FakeHub::otherwise(model_files(), |ask| {
        let network = ask.path.starts_with("/network/") && ask.is_for("1_Dense/model.safetensors");
        Some(Act::Cut(60)).filter(|_| (network || ask.is_for("tokenizer.json")) && ask.before < 2)
    });
    let (_setup, fetched) = fetched(&hub);
    assert!(Model::open(&fetched.unwrap()).is_ok());
    let requests = hub.requests.lock().unwrap();
    let from: Vec<usize> =
        requests.iter().filter(|ask| ask.is_for("tokenizer.json")).map(|ask| ask.from).collect();
    assert!(from.len() == 3 && from[0] == 0 && from[1] > 0 && from[2] > from[1], "{from:?}");
}

#[test]
fn a_download_that_another_process_began_is_gone_on_with() {
    let cuts = |ask: &fake_hub::Ask| {
        Some(Act::Cut(60)).filter(|_| ask.path == "/network/model.safetensors")
    };
    let hub = FakeHub::otherwise(model_files(), cuts);
    let mut setup = Setup::new(&hub.endpoint);
    setup.fetcher.hub.patience.broken = 0;
    let error = setup.fetch(ID).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    let good = FakeHub::start(model_files());
    setup.fetcher.hub.endpoint.clone_from(&good.endpoint);
    assert!(Model::open(&setup.fetch(ID).unwrap()).is_ok());
    let requests = good.requests.lock().unwrap();
    let weights: Vec<_> =
        requests.iter().filter(|ask| ask.path == "/network/model.safetensors").collect();
    assert!(weights.len() == 1 && weights[0].from > 0, "{weights:?}");
}

#[test]
fn a_download_that_stands_still_or_drips_is_given_up() {
    for (act, expected) in [(Act::Hang(60), "stood still"), (Act::Drip, "too slow")] {
        let hub = at("tokenizer.json", Some(act));
        let mut setup = Setup::new(&hub.endpoint);
        setup.fetcher.hub.patience.broken = 0;
        let error = setup.fetch(ID).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("tokenizer.json"), "{error}");
        assert!(setup.cached(ID).is_empty());
    }
}

#[test]
fn what_is_altered_on_the_way_is_fetched_once_more_and_never_kept() {
    for place in ["config.json", "model.safetensors"] {
        let garble = move |times: usize| {
            FakeHub::otherwise(model_files(), move |ask| {
                let here = ask.path.ends_with(&format!("{COMMIT}/{place}"))
                    || ask.path == format!("/network/{place}");
                let redirects =
                    here && place.ends_with(".safetensors") && ask.path.contains(COMMIT);
                Some(Act::Garble).filter(|_| here && !redirects && ask.before < times)
            })
        };
        let hub = garble(1);
        let (_setup, fetched) = fetched(&hub);
        assert!(Model::open(&fetched.unwrap()).is_ok());
        let words = words(&garble(9));
        assert!(words.contains(place) && words.contains("was published"), "{words}");
    }
}

#[test]
fn sizes_that_contradict_the_hubs_are_no_file() {
    for (place, body) in [("tokenizer.json", "{}"), ("model.safetensors", "short")] {
        let words = words(&at(place, Act::answer(200, "", body)));
        assert!(words.contains(place) && words.contains("bytes"), "{words}");
    }
}

#[test]
fn redirects_have_an_end() {
    for place in PLACES {
        let hub = FakeHub::otherwise(model_files(), move |ask| {
            let here = if place == ON_LIST { ask.is_list() } else { ask.is_for(place) };
            let lines = format!("location: {}\r\n", ask.path);
            Act::answer(302, &lines, "").filter(|_| here)
        });
        let words = words(&hub);
        assert!(words.contains("redirected more than 10 times"), "{words}");
    }
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let network = FakeHub::start(model_files());
    let elsewhere = network.endpoint.clone();
    let hub = FakeHub::otherwise(model_files(), move |ask| {
        let lines = format!("location: {elsewhere}/network/tokenizer.json\r\n");
        Act::answer(302, &lines, "").filter(|_| ask.is_for("tokenizer.json"))
    });
    let (_setup, fetched) = fetched(&hub);
    fetched.unwrap();
    let requests = network.requests.lock().unwrap();
    assert!(requests.len() == 1 && !requests[0].has_token, "{requests:?}");
}

#[test]
fn a_mirror_that_knows_neither_sizes_nor_hashes_will_do() {
    let plain = |ask: &fake_hub::Ask| match () {
        () if ask.path.contains("/tree/") => Act::answer(404, "", "<html>"),
        () if ask.path.contains("/resolve/") => {
            let (_, name) = ask.path.split_once(&format!("{COMMIT}/")).unwrap();
            Some(Act::Answer(200, "etag: \"a/../b\"\r\n".to_owned(), model_files()[name].clone()))
        }
        () => None,
    };
    let hub = FakeHub::otherwise(model_files(), plain);
    let (mut setup, fetched) = fetched(&hub);
    assert!(Model::open(&fetched.unwrap()).is_ok());
    // Whatever it was named by can be checked later.
    setup.fetcher.hub.endpoint = "http://127.0.0.1:9".to_owned();
    setup.fetcher.cache = Some(setup.home.path().join("other"));
    assert!(Model::open(&setup.fetch(ID).unwrap()).is_ok());
}

#[test]
fn names_of_files_are_encoded() {
    let mut files: Files = model_files();
    let weights = files.remove("model.safetensors").unwrap();
    files.insert("model-a b?#%.safetensors".to_owned(), weights);
    let index = r#"{"weight_map": {"x": "model-a b?#%.safetensors"}}"#;
    files.insert("model.safetensors.index.json".to_owned(), index.as_bytes().to_vec());
    let hub = FakeHub::start(files);
    let (_setup, fetched) = fetched(&hub);
    let words = fetched.unwrap_err().to_string();
    assert!(words.contains("lists this file but does not have it"), "the fake hub decodes nothing");
    assert_eq!(hub.downloads("model-a%20b%3F%23%25.safetensors"), 1);
}

#[test]
fn tls_that_fails_is_told_from_a_network_that_does() {
    // What answers speaks no TLS.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let words = Setup::new(&endpoint).fetch(ID).unwrap_err().to_string();
    assert!(words.contains("(TLS)"), "{words}");
}
