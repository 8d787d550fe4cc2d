//! Signals, at each moment of a command's life: docs/running.md has the table.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{BODY, Running, Server, head_of_embedding, until, vecmill};

const STOP: [&str; 4] = ["TERM", "INT", "QUIT", "HUP"];

/// The number of a signal that means "stop".
fn number(signal: &str) -> i32 {
    match signal {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        _ => 15,
    }
}

#[test]
fn a_signal_to_stop_loses_no_accepted_request() {
    for signal in STOP {
        let mut server = Server::start("", &[], Stdio::piped());
        let mut log = BufReader::new(server.process.0.stderr.take().unwrap());
        let mut client = server.connect();
        // Accepted, and begun: the server asks for the rest.
        client.send(&format!("{}expect: 100-continue\r\n\r\n", head_of_embedding()));
        assert!(client.head().starts_with("HTTP/1.1 100 "));
        server.process.signal(signal);
        let mut line = String::new();
        while !line.contains("stopping: ") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "SIG{signal} ends it at once");
        }
        client.send(BODY);
        assert_eq!(client.status(), 200, "SIG{signal}");
        assert_eq!(server.process.end().code(), Some(0), "SIG{signal}");
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
    }
}

#[test]
fn other_signals_are_no_end() {
    let mut server = Server::start("", &[], Stdio::null());
    let mut client = server.connect();
    for signal in ["USR1", "USR2", "PIPE", "WINCH", "CHLD", "URG", "CONT"] {
        server.process.signal(signal);
        assert_eq!(client.embed(), 200, "SIG{signal}");
    }
    // Stopped as by Ctrl-Z, and resumed: what was sent meanwhile is answered.
    for signal in ["TSTP", "STOP"] {
        server.process.signal(signal);
        client.send(&format!("{}\r\n{BODY}", head_of_embedding()));
        server.process.signal("CONT");
        assert_eq!(client.status(), 200, "SIG{signal}");
    }
    server.process.signal("TERM");
    assert_eq!(server.process.end().code(), Some(0));
}

#[test]
fn what_is_to_outlive_its_terminal_does() {
    let mut server = Server::start("trap '' HUP", &[], Stdio::null());
    server.process.signal("HUP");
    assert_eq!(server.connect().embed(), 200);
    server.process.signal("TERM");
    assert_eq!(server.process.end().code(), Some(0));
}

/// A hub that accepts whoever comes and never says a word, and a command that asks it.
fn fetching(arguments: &[&str], folder: &Path) -> (TcpListener, Command) {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill"));
    command.args(arguments).args(["--model-id", "some/model"]).env_clear();
    command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap()));
    command.env("HF_HOME", folder).env("VECMILL_CACHE", folder).env("VECMILL_DEVICE", "cpu");
    (hub, command)
}

#[test]
fn a_signal_while_the_model_is_fetched_is_not_waited_for() {
    for signal in STOP {
        let folder = tempfile::tempdir().unwrap();
        let (hub, mut command) = fetching(&["serve", "--port", "0"], folder.path());
        let mut server = Running(command.stderr(Stdio::null()).spawn().unwrap());
        let asked = hub.accept().unwrap();
        server.signal(signal);
        assert_eq!(server.end().code(), Some(0), "SIG{signal}: nothing was accepted or lost");
        drop(asked);

        let output = folder.path().join("new");
        let to = output.to_str().unwrap();
        let ended = (None, Some(number(signal)));
        let convert = ["convert", "--dtype", "f16", "--output", to];
        for (arguments, expected) in
            [(&["embed", "text"][..], ended), (&["plan"], ended), (&convert, (Some(1), None))]
        {
            let (hub, mut command) = fetching(arguments, folder.path());
            let mut command = Running(command.stderr(Stdio::null()).spawn().unwrap());
            let _asked = hub.accept().unwrap();
            command.signal(signal);
            let status = command.end();
            assert_eq!((status.code(), status.signal()), expected, "{arguments:?}");
            assert!(!output.exists());
        }
    }
}

#[test]
fn a_signal_leaves_no_half_of_an_output() {
    for signal in STOP {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.npy");
        let mut command = vecmill("", &["embed", "-o", path.to_str().unwrap()]);
        let pipes = command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(pipes.spawn().unwrap());
        let mut stdin = child.0.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").unwrap();
        until("the output is begun", || folder.path().read_dir().unwrap().count() > 0);
        child.signal(signal);
        assert_eq!(child.end().code(), Some(1), "SIG{signal}");
        let mut said = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("vecmill: interrupted; "), "{said}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "SIG{signal}");
    }
}

#[test]
fn a_signal_is_heard_while_nobody_reads_the_output() {
    let (reader, writer) = std::io::pipe().unwrap();
    let texts = vec!["text"; 500];
    let mut command = vecmill("", &[&["embed"], &texts[..]].concat());
    let mut child = Running(command.stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    drop(command);
    until("the pipe is full", || rustix::io::ioctl_fionread(&reader).unwrap() > 60_000);
    child.signal("TERM");
    assert_eq!(child.end().code(), Some(1));
}

#[test]
fn a_second_signal_ends_a_server_whose_client_never_finishes() {
    // Nobody waits for the end of the grace period.
    let mut server = Server::start("", &["--shutdown-grace", "24h"], Stdio::null());
    let mut client = server.connect();
    client.send(&format!("{}expect: 100-continue\r\n\r\n", head_of_embedding()));
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    server.process.signal("HUP");
    until("it stops listening", || std::net::TcpStream::connect(&server.address).is_err());
    server.process.signal("QUIT");
    // The request has not come whole, so nothing is lost.
    assert_eq!(server.process.end().code(), Some(0));
}
