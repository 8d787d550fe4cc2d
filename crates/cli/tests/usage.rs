//! What the binary does without a model: help, usage, settings, completions.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::process::{Command, Output, Stdio};

fn vecmill(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(&vecmill(arguments).output().unwrap())
}

fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_has_examples_and_exit_codes() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(help.contains("Exit codes:") && help.contains("vecmill serve"), "{help}");
    let commands: [&[&str]; 7] =
        [&["serve"], &["embed"], &["plan"], &["convert"], &["ab"], &["devices"], &["completions"]];
    for command in commands {
        for flag in ["-h", "--help"] {
            let (code, help, _) = run(&[command, &[flag]].concat());
            assert_eq!(code, 0);
            assert!(help.contains("Examples:"), "{command:?} {flag}: {help}");
        }
    }
}

#[test]
fn help_names_the_variable_and_the_default_of_a_setting() {
    let (_, help, _) = run(&["serve", "--help"]);
    assert!(help.contains("[env: VECMILL_PORT] [default: 3000]"), "{help}");
    assert!(help.contains("[env: VECMILL_HF_TOKEN, HF_TOKEN]"), "{help}");
    assert!(help.contains("--huggingface-hub-cache"), "{help}");
}

#[test]
fn the_version_is_printed() {
    assert_eq!(run(&["--version"]).1, format!("vecmill {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_errors_end_with_2_and_help_on() {
    assert_eq!(run(&[]).0, 2);
    let (code, out, err) = run(&["serve", "--prot", "1"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("'--port'"), "{err}");
    assert_eq!(run(&["embed", "--prompt", "a", "--prompt-name", "b", "text"]).0, 2);
    assert_eq!(run(&["embed", "--input", "a.txt", "text"]).0, 2);
    let (code, _, err) = run(&["embed", "--output", "vectors.parquet", "text"]);
    assert_eq!(code, 2);
    assert!(err.contains(".jsonl or .npy"), "{err}");
}

#[test]
fn all_wrong_settings_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vecmill.toml");
    std::fs::write(&file, "model-id = './missing'\nmax-client-batchsize = 4\n").unwrap();
    let output = vecmill(&["serve", "--port", "no", "--config"])
        .arg(&file)
        .env("VECMILL_QUEUE_CAPACITY", "0")
        .env("HF_TOKEN", "not a token")
        .output()
        .unwrap();
    let (code, out, err) = outcome(&output);
    assert_eq!((code, out.as_str()), (2, ""));
    let file = file.display();
    for line in [
        "5 settings can't be used:".to_owned(),
        "  --port 'no': expected a port from 0 to 65535".to_owned(),
        "  VECMILL_QUEUE_CAPACITY '0': expected a whole number of at least 1".to_owned(),
        "  HF_TOKEN: expected visible ASCII characters without spaces".to_owned(),
        format!("  {file}:1: model-id './missing': expected an id on the Hugging Face hub"),
        format!("  {file}:2: max-client-batchsize: no such setting; did you mean 'max-client-b"),
    ] {
        assert!(err.contains(&line), "{line}\nis not in\n{err}");
    }
    assert!(!err.contains("not a token"), "{err}");
}

#[test]
fn the_admin_addresses_are_not_opened_to_everybody() {
    let (code, out, err) = run(&["serve", "--admin", "--hostname", "0.0.0.0"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("--admin: expected an --api-key beside it"), "{err}");
}

#[test]
fn no_settings_file_is_read_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vecmill.toml"), "nonsense").unwrap();
    let output = vecmill(&["serve", "--port", "no"]).current_dir(&folder).output().unwrap();
    let (_, _, err) = outcome(&output);
    assert!(err.contains("a setting can't be used:"), "{err}");
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, _) = run(&["completions", shell]);
        assert_eq!(code, 0, "{shell}");
        assert!(script.contains("max-batch-tokens"), "{shell}");
    }
}

#[test]
fn devices_are_listed_as_a_table_and_as_json() {
    let (code, table, _) = run(&["devices"]);
    assert_eq!(code, 0);
    assert!(table.starts_with("DEVICE") && table.contains("\ncpu "), "{table}");
    let (_, json, _) = run(&["devices", "--json"]);
    let machine: serde_json::Value = serde_json::from_str(&json).unwrap();
    let (devices, no_gpu) = (machine["devices"].as_array().unwrap(), &machine["no_gpu"]);
    assert_eq!(devices[0]["device"], "cpu");
    assert!(devices[0]["details"].is_string());
    // Either there are GPUs, or it is said why there are none.
    assert_eq!(no_gpu.is_string(), devices.len() == 1, "{no_gpu}");
    assert_eq!(no_gpu.is_string(), table.contains("No GPU: "), "{table}");
    let libraries = machine["libraries"].as_array().unwrap();
    let names: Vec<_> = libraries.iter().map(|library| library["library"].as_str()).collect();
    assert_eq!(names, ["driver", "NVRTC", "cuBLASLt"].map(Some));
    for library in libraries {
        let there = [&library["version"], &library["file"]].map(serde_json::Value::is_string);
        assert_eq!(there, [!library["missing"].is_string(); 2], "{library}");
    }
    assert!(libraries[0]["file"].is_string() || no_gpu.is_string(), "no GPU without its driver");
}

#[test]
fn a_closed_pipe_ends_quietly_as_sigpipe_does() {
    for arguments in [&["devices"][..], &["completions", "bash"], &["serve", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, _, err) = outcome(&vecmill(arguments).stdout(writer).output().unwrap());
        assert_eq!((code, err.as_str()), (141, ""), "{arguments:?}");
    }
}

#[test]
fn a_port_in_use_is_said_before_anything_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, err) = run(&["serve", "--port", &port, "--model-id", "."]);
    assert_eq!(code, 1);
    assert!(err.contains(&format!("127.0.0.1:{port}")) && err.contains("another --port"), "{err}");
}

#[test]
fn a_folder_without_a_model_fails_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for arguments in
        [&["embed", "--model-id", path, "text"][..], &["serve", "--port", "0", "--model-id", path]]
    {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("vecmill: the model can't be started: "), "{err}");
    }
}
