//! `vecmill ab` with a tiny model: reports of every kind of load, traces, and mistakes.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::fs::{read_to_string, write};
use std::process::{Command, Stdio};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/models/bert-mean");
const BOTH: [&str; 2] = ["--policies", "round-robin,earliest-finish"];
const SHORT: [&str; 6] = ["--seconds", "0.3", "--settle", "0.1", "--repeats", "2"];

/// Exit code, standard output and standard error.
fn ab(arguments: &[&[&str]]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(["ab", "--model-id", MODEL, "--device", "cpu", "--cpu-threads", "1"]);
    let output =
        command.args(arguments.concat()).env_clear().stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_open_load_is_reported_as_table_page_and_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, figures) = (file("report.html"), file("figures.json"));
    let output = ["--load", "0.4", "--html", &page, "--json", &figures];
    let search = ["--slo", "1s", "--find-max", "--interference"];
    let (code, table, err) = ab(&[&BOTH, &SHORT, &output, &search]);
    assert_eq!(code, 0, "{err}");
    for part in [
        "40 % of the capacity",
        "p99 latency (ms)",
        "earliest-finish beside round-robin:",
        "too few passes",
    ] {
        assert!(table.contains(part), "{part} is missing: {table}");
    }

    let figures: Value = serde_json::from_str(&read_to_string(figures).unwrap()).unwrap();
    assert!(figures["command"].as_str().unwrap().starts_with("vecmill ab "));
    let figures = &figures["figures"];
    let order: Vec<&str> = figures["passes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pass| pass["policy"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["round-robin", "earliest-finish", "earliest-finish", "round-robin"]);
    for pass in figures["passes"].as_array().unwrap() {
        let number = |name: &str| pass[name].as_f64().unwrap();
        assert!(number("requests") > 0.0 && number("unanswered") == 0.0, "{pass}");
        assert!(number("p50") > 0.0 && number("p50") <= number("p99"), "{pass}");
        assert!(number("mean_waiting") < number("mean_latency"), "{pass}");
        let share = pass["devices"][0]["busy_share"].as_f64().unwrap();
        assert!(share > 0.05 && share < 1.01, "{pass}");
    }
    // What others need to predict it.
    assert!(figures["requests"]["per_second"].as_f64().unwrap() > 1.0, "{figures}");
    assert!(figures["devices"][0]["batch_tokens"].as_u64().unwrap() > 0, "{figures}");
    let learned = &figures["passes"][3]["devices"][0]["learned"];
    assert!(learned["per_token"].as_f64().unwrap() > 0.0, "{learned}");
    let requests = |pass: usize| figures["passes"][pass]["requests"].as_u64();
    assert_eq!(
        (requests(0), requests(3)),
        (requests(1), requests(2)),
        "both got the same requests"
    );
    assert!(figures["max_loads"][0]["load"].as_f64().unwrap() > 0.0);
    assert_eq!(figures["interference"].as_array().unwrap().len(), 0, "there is one device");

    let page = read_to_string(page).unwrap();
    assert!(page.matches("<svg ").count() == 7 && page.matches("</svg>").count() == 7);
    assert!(!page.contains("src=") && !page.contains("href="), "it needs nothing else");
    assert!(!page.contains("NaN") && !page.contains("inf"), "all has a place");
}

#[test]
fn work_that_comes_all_at_once_is_timed() {
    let (code, table, err) = ab(&[&BOTH, &SHORT, &["--bulk", "300"]]);
    assert_eq!(code, 0, "{err}");
    for part in
        ["300 requests at once", "makespan (s)", "efficiency (% of the devices' own speeds)"]
    {
        assert!(table.contains(part), "{part} is missing: {table}");
    }
}

#[test]
fn a_trace_that_was_written_can_be_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("requests.csv");
    let trace = path.to_str().unwrap();
    let (code, out, err) = ab(&[&SHORT, &["--rate", "100", "--write-trace", trace]]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let requests = read_to_string(&path).unwrap().lines().count() - 1;
    assert!((15..=70).contains(&requests), "0.4 seconds at 100 per second: {requests}");
    let (code, table, err) = ab(&[&BOTH, &SHORT, &["--trace", trace]]);
    assert_eq!(code, 0, "{err}");
    assert!(table.contains(&format!("a trace of {requests} requests")), "{table}");

    write(&path, "seconds,tokens\n0.0,5\n0.1;5\n").unwrap();
    let (code, _, err) = ab(&[&BOTH, &SHORT, &["--trace", trace]]);
    assert!(code == 1 && err.contains("requests.csv: line 3: expected"), "{err}");
    write(&path, "seconds,tokens\n0.0,5\n").unwrap();
    let (code, _, err) = ab(&[&BOTH, &SHORT, &["--trace", trace]]);
    assert!(code == 1 && err.contains("a longer trace"), "{err}");
}

#[test]
fn mistakes_are_named_before_a_model_is_loaded() {
    for (arguments, said) in [
        (vec!["--policies", "round-robin"], "expected two or more, each once, found 1"),
        (vec!["--policies", "round-robin,round-robin"], "expected two or more, each once, found 1"),
        (
            vec!["--policies", "round-robin,fastest"],
            "no policy 'fastest': choose from earliest-finish,",
        ),
        (
            vec!["--policies", "weighted,round-robin", "--load=0"],
            "--load: expected a part of the capacity",
        ),
        (
            vec!["--policies", "weighted,round-robin", "--repeats", "1"],
            "--repeats: expected 2 or more",
        ),
        (vec!["--policies", "weighted,round-robin", "--find-max"], "--slo"),
        (
            vec!["--policies", "weighted,round-robin", "--longest=2"],
            "--longest: expected 3 or more",
        ),
        (vec!["--write-trace", "nowhere.csv", "--rate=-1"], "--rate: expected a number above 0"),
        (vec!["--load", "0.5"], "--policies"),
    ] {
        let (code, out, err) = ab(&[&arguments]);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}
