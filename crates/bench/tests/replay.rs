//! `vecmill-bench replay` with the committed trace: table, picture, JSON, and traces that are none.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/traces/sample.csv");

fn replay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill-bench"));
    command.arg("replay").args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(&replay(arguments).output().unwrap())
}

fn json(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replay.json");
    let (code, _, err) = run(&[&[SAMPLE, "--json", file.to_str().unwrap()], arguments].concat());
    assert_eq!(code, 0, "{err}");
    let mut result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result["device"], "simulated device");
    result["figures"].take()
}

/// Whether every element of an XML text is closed, in order.
fn is_balanced(xml: &str) -> bool {
    let mut open: Vec<&str> = Vec::new();
    for part in xml.split('<').skip(1) {
        let Some((tag, _)) = part.split_once('>') else { return false };
        let name = tag.split([' ', '\n', '/']).find(|name| !name.is_empty()).unwrap_or_default();
        match (tag.starts_with('/'), tag.ends_with('/') || tag.starts_with(['?', '!'])) {
            (true, _) if open.pop() != Some(name) => return false,
            (true, _) | (_, true) => {}
            (false, false) => open.push(name),
        }
    }
    open.is_empty()
}

#[test]
fn policies_are_compared_side_by_side() {
    let (code, table, err) = run(&[SAMPLE]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(table.starts_with("600 events in "), "{table}");
    let heads: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(heads, ["pool", "naive", "direct"]);
    assert!(table.contains("\npeak held "), "{table}");

    let (_, table, _) = run(&[SAMPLE, "--policy", "direct,pool,direct"]);
    let heads: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(heads, ["direct", "pool"], "each once, in the order asked for");
}

#[test]
fn the_picture_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.svg");
    let file = path.to_str().unwrap();
    let (code, table, _) = run(&[SAMPLE, "--svg", file, "--budget", "8GiB"]);
    assert_eq!(code, 0);
    assert!(table.contains("with 8.00 GiB"), "{table}");
    let picture = std::fs::read_to_string(&path).unwrap();
    assert!(picture.trim_start().starts_with("<svg ") && is_balanced(&picture));
    assert!(picture.contains(">pool<") && picture.contains(">direct<"));
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing else is left there");

    for wrong in [folder.path(), &folder.path().join("missing/memory.svg")] {
        let wrong = wrong.to_str().unwrap();
        let (code, out, err) = run(&[SAMPLE, "--svg", wrong]);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains(wrong) && err.contains("can't be written"), "{err}");
    }
    std::fs::write(&path, "earlier").unwrap();
    assert_eq!(run(&["/no/trace.csv", "--svg", file]).0, 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "earlier");
}

#[test]
fn json_has_the_figures_of_the_table() {
    let replayed = json(&[]);
    assert_eq!(replayed["trace"]["events"], 600);
    assert_eq!(replayed["trace"]["streams"], serde_json::json!([0, 1, 2]));
    assert!(replayed["budget_bytes"].is_null());
    let policies = replayed["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 3);
    let (naive, direct) = (&policies[1], &policies[2]);
    assert_eq!(naive["policy"], "naive");
    assert_eq!(naive["held_at_end_bytes"], naive["held_peak_bytes"], "it gives nothing back");
    assert_eq!(direct["held_at_end_bytes"], 0);
    assert_eq!(direct["warm_ratio"], 0.0);
    for policy in policies {
        assert_eq!((&policy["leases"], &policy["refusals"]), (&300.into(), &0.into()));
    }
}

#[test]
fn a_budget_is_kept() {
    let replayed = json(&["--budget", "256MiB"]);
    assert_eq!(replayed["budget_bytes"], 256 << 20);
    for policy in replayed["policies"].as_array().unwrap() {
        assert!(policy["held_peak_bytes"].as_u64().unwrap() <= 256 << 20, "{policy}");
        assert!(policy["refusals"].as_u64().unwrap() > 0, "{policy}");
    }
}

#[test]
fn memory_is_given_back_when_told() {
    let held = |time: &str| {
        let replayed = json(&["--policy", "pool", "--give-back", time]);
        replayed["policies"][0]["held_mean_bytes"].as_f64().unwrap()
    };
    assert!(held("1s") < held("never"));
}

#[test]
fn traces_come_from_standard_input_too() {
    let mut command = replay(&["-", "--policy", "direct"]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let trace = b"# lost 1234\nnanoseconds,event,id,stream,bytes\n1,lease,1,0,77\n2,return,1,,\n";
    child.stdin.take().unwrap().write_all(trace).unwrap();
    let (code, table, err) = outcome(&child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(table.starts_with("2 events in 0.0 s on 1 stream\n"), "{table}");
    assert!(err.contains("lacks 1,234 events"), "{err}");
}

#[test]
fn a_trace_that_is_none_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv");
    for (text, said) in [
        ("nanoseconds,event,id,stream,bytes\n1,lease,1,0,77\n2,retrun,1,,\n", ": line 3: expected"),
        ("nanoseconds,event,id,stream,bytes\n1,lease,1,0,many\n", ": line 2: expected"),
        ("", ": "),
    ] {
        std::fs::write(&path, text).unwrap();
        let (code, out, err) = run(&[path.to_str().unwrap()]);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains(&format!("trace.csv{said}")), "{err}");
    }
    let (code, _, err) = run(&["/no/trace.csv"]);
    assert_eq!(code, 1);
    assert!(err.contains("/no/trace.csv can't be read"), "{err}");
    assert!(Path::new(SAMPLE).exists());
}

#[test]
fn unknown_policies_and_times_are_mistakes_in_usage() {
    let (code, out, err) = run(&[SAMPLE, "--policy", "pool,buddy"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("'buddy'") && err.contains("pool, naive, direct"), "{err}");
    let (code, _, err) = run(&[SAMPLE, "--give-back", "soon"]);
    assert_eq!(code, 2);
    assert!(err.contains("'soon' for '--give-back"), "{err}");
    assert_eq!(run(&[SAMPLE, "--device", "gpu"]).0, 2);
    assert_eq!(run(&[SAMPLE, "--seed", "2"]).0, 2, "of a day that isn't simulated");
    assert_eq!(run(&["--budget", "8GiB"]).0, 2, "a day has one of its own");
}
