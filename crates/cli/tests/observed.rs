//! A log that can't be written, or that nobody reads, costs lines of the log and nothing else; results
//! that can't be written are an error.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use support::{Running, Server, until, vecmill};

const LOST: &str = "vecmill_log_lines_lost_total";

/// Asks for vectors and is answered each time, then has the server stop.
fn all_is_well(mut server: Server) {
    let mut client = server.connect();
    for _ in 0..30 {
        assert_eq!((client.embed(), client.get()), (200, 200));
    }
    drop(client);
    assert!(server.ask("GET /health").starts_with("HTTP/1.1 200 "));
    server.process.signal("TERM");
    assert_eq!(server.process.end().code(), Some(0));
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_log_whose_reader_goes_away_loses_no_request() {
    for json in [&[][..], &["--json-output"]] {
        let mut server = Server::start("", json, Stdio::piped());
        let mut lines = BufReader::new(server.process.0.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line.starts_with('{'), !json.is_empty(), "{line}");
        drop(lines);
        let mut client = server.connect();
        for _ in 0..30 {
            assert_eq!(client.embed(), 200);
        }
        until("the lost lines are counted", || server.metric(LOST) >= 30);
        all_is_well(server);
    }
}

#[test]
fn a_log_without_room_from_the_start_loses_no_request() {
    for json in [&[][..], &["--json-output"]] {
        let server = Server::start("", json, full());
        until("the lost lines are counted", || server.metric(LOST) > 0);
        all_is_well(server);
    }
}

#[test]
fn a_log_file_that_may_not_grow_loses_no_request() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let out = log.reopen().unwrap();
    // The signal that comes with it would end the process.
    let server = Server::start("ulimit -f 4", &[], out.into());
    let mut client = server.connect();
    until("the lost lines are counted", || client.get() == 200 && server.metric(LOST) > 0);
    all_is_well(server);
    assert!(log.as_file().metadata().unwrap().len() > 1000);
}

#[test]
fn a_log_that_is_closed_loses_no_request() {
    all_is_well(Server::start("exec 2>&-", &[], Stdio::null()));
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    for json in [&[][..], &["--json-output"]] {
        // The pipe is full after 64 KiB, the queue behind it after 1 MiB.
        let mut server = Server::start("", json, Stdio::piped());
        let unread = server.process.0.stderr.take();
        let mut client = server.connect();
        let mut requests = 0;
        until("lines are lost", || {
            requests += 100;
            assert!((0..100).all(|_| client.get() == 200));
            server.metric(LOST) > 0
        });
        assert!(requests > 1000, "some lines wait for a reader: {requests}");
        all_is_well(server);
        drop(unread);
    }
}

#[test]
fn a_reader_who_comes_back_is_told_what_was_lost() {
    let mut server = Server::start("", &[], Stdio::piped());
    let unread = server.process.0.stderr.take().unwrap();
    let mut client = server.connect();
    until("lines are lost", || (0..100).all(|_| client.get() == 200) && server.metric(LOST) > 0);
    let mut lines = BufReader::new(unread).lines().map(Result::unwrap);
    let told = lines.find(|line| line.contains("lines of the log were lost")).unwrap();
    assert!(told.contains(" WARN ") && told.contains("lines="), "{told}");
    std::thread::spawn(move || lines.count());
    all_is_well(server);
}

#[test]
fn results_that_can_t_be_written_are_an_error() {
    for arguments in [
        &["devices"][..],
        &["devices", "--json"],
        &["completions", "bash"],
        &["embed", "--help"],
        &["--version"],
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vecmill"));
        let output = command.args(arguments).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("vecmill: standard output can't be written: "), "{said}");
    }
    for arguments in [&["embed", "text"][..], &["plan"]] {
        let output = vecmill("", arguments).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("vecmill: standard output can't be written: "), "{said}");
    }
}

#[test]
fn an_output_that_is_not_ready_is_waited_for() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let texts = vec!["text"; 500];
    let mut command = vecmill("", &[&["embed"], &texts[..]].concat());
    let mut child = Running(command.stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    drop(command); // and with it our end of the pipe
    until("the pipe is full", || rustix::io::ioctl_fionread(&reader).unwrap() > 60_000);
    let mut lines = String::new();
    reader.read_to_string(&mut lines).unwrap();
    assert_eq!((child.end().code(), lines.lines().count()), (Some(0), 500));
}

#[test]
fn texts_that_fail_are_all_reported_to_a_slow_reader() {
    let empty = "\n".repeat(20_000);
    let mut command = vecmill("", &["embed", "-o", "/dev/null"]);
    let pipes = command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(pipes.spawn().unwrap());
    let mut stdin = child.0.stdin.take().unwrap();
    let feed = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, empty.as_bytes()));
    let lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let reported = lines.filter(|line| line.starts_with("vecmill: line ")).count();
    feed.join().unwrap().unwrap();
    assert_eq!((child.end().code(), reported), (Some(3), 20_000));
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.npy");
    let texts = vec!["text"; 500]; // 64 kB
    let arguments = [&["embed", "-o", path.to_str().unwrap()], &texts[..]].concat();
    let output = vecmill("ulimit -f 4", &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("vectors.npy: no space left") && said.contains("ulimit -f"), "{said}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
