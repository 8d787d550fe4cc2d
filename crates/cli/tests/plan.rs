//! `vecmill plan` with small models: what fits, and what is said when nothing does.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Exit code, standard output and standard error.
fn plan(arguments: &[&str]) -> (i32, String, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(["plan", "--model-id"]).arg(model).args(arguments).env_clear();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(arguments: &[&str]) -> Value {
    let (code, out, err) = plan(&[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap().try_into().unwrap()
}

const GPU: [&str; 4] = ["--device", "gpu", "--memory", "1GiB"];

#[test]
fn a_plan_is_a_picture_and_a_table() {
    let (code, out, err) = plan(&GPU);
    assert_eq!((code, err.as_str()), (0, ""));
    for part in ["(bert) in float16, on a GPU with 1.00 GiB\n", "█", "▒", "░", "AT ONCE"] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    assert!(out.contains("Largest batch: 16,384 tokens") && out.contains("of 32 tokens"), "{out}");
}

#[test]
fn the_parts_of_a_budget_add_up() {
    for arguments in [
        &GPU[..],
        &["--device", "gpu", "--memory", "300MiB", "--in-flight", "3", "--dtype", "f32"],
        &["--memory", "64MiB"],
        &["--memory", "100%", "--in-flight", "4"],
    ] {
        let plan = json(arguments);
        let size = |name: &str| number(&plan[name]);
        let slabs = size("in_flight") * size("slab_bytes");
        let parts = size("weights_bytes") + slabs + size("headroom_bytes");
        assert_eq!(parts, size("budget_bytes"), "{plan}");
        for texts in plan["largest_batch"]["texts"].as_array().unwrap() {
            let tokens = number(&plan["largest_batch"]["tokens"]);
            assert_eq!(number(&texts["texts"]), tokens / number(&texts["tokens"]), "{plan}");
        }
        let slabs = plan["slabs"].as_array().unwrap();
        assert!(slabs.is_sorted_by_key(|slab| number(&slab["bytes"])), "{plan}");
    }
}

#[test]
fn formats_and_devices_make_a_difference() {
    let (half, full) = (json(&GPU), json(&[&GPU[..], &["--dtype", "float32"]].concat()));
    assert_eq!((&half["dtype"], &full["dtype"]), (&"float16".into(), &"float32".into()));
    assert_eq!(json(&[&GPU[..], &["--dtype", "bf16"]].concat())["dtype"], "bfloat16");
    assert!(number(&half["bytes_per_token"]) < number(&full["bytes_per_token"]));
    let cpu = json(&["--memory", "1GiB"]);
    assert_eq!((&cpu["device"], &cpu["dtype"]), (&"cpu".into(), &"float32".into()));
    assert_eq!(cpu["in_flight"], 1);
    assert_eq!(json(&["--memory", "1073741824"]), cpu);
}

#[test]
fn batches_are_limited_as_asked() {
    let limited = json(&[&GPU[..], &["--max-batch-tokens", "1000"]].concat());
    assert_eq!(limited["largest_batch"]["tokens"], 1000);
    let more = json(&[&GPU[..], &["--max-batch-tokens", "100000000"]].concat());
    assert!(number(&more["largest_batch"]["tokens"]) > 16_384, "{more}");
    let (slab, room) = (number(&more["slab_bytes"]), number(&more["headroom_bytes"]));
    assert!(room < slab, "memory is the limit: {more}");
}

#[test]
fn what_requests_may_hold_is_no_device_s() {
    let with = |bytes| json(&["--memory", "100%", "--max-request-memory", bytes]);
    let (less, more) = (with("64MiB"), with("1GiB"));
    assert_eq!(number(&more["request_memory_bytes"]), 1 << 30);
    let budget = |plan: &Value| number(&plan["budget_bytes"]);
    // What is free changes from one run to the next, but not by so much.
    let between = budget(&less).abs_diff(budget(&more) + (1 << 30) - (64 << 20));
    assert!(between < 512 << 20, "{less} {more}");
    let (_, out, _) = plan(&["--max-request-memory", "64MiB"]);
    assert!(out.contains("for requests: 64.0 MiB of the machine's memory"), "{out}");
}

#[test]
fn too_little_memory_says_how_much_is_missing() {
    let (code, out, err) = plan(&["--memory", "1MiB"]);
    assert_eq!((code, out.as_str()), (1, ""));
    let (_, enough) = err.split_once("set --memory to ").unwrap();
    let (enough, _) = enough.split_once(" or more").unwrap();
    assert!(err.contains("more than the 1.00 MiB there are"), "{err}");
    assert_eq!(plan(&["--memory", enough]).0, 0, "what is advised helps: {err}");

    let short = ["--device", "gpu", "--memory", "1MiB", "--dtype", "f32"];
    assert!(plan(&short).2.contains("or --dtype f16"));
}

#[test]
fn what_can_t_be_meant_is_a_mistake_in_usage() {
    for (arguments, said) in [
        (&["--device", "gpu"][..], "add --memory"),
        (&["--device", "gpu", "--memory", "50%"], "give a size such as 8GiB"),
        (&["--dtype", "f16"], "the CPU computes in f32"),
        (&["--memory", "8GB"], "a size such as 8GiB"),
        (&["--memory", "0"], "a size such as 8GiB"),
        (&["--in-flight", "0"], "--in-flight"),
        (&["--device", "tpu"], "cpu, gpu"),
    ] {
        let (code, out, err) = plan(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}
