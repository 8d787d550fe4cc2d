use proptest::prelude::*;

use super::*;

const HEADER: &str = "nanoseconds,event,id,stream,bytes\n";

fn read(rows: &str) -> Result<Recording, RecordingError> {
    Recording::read(format!("{HEADER}{rows}").as_bytes())
}

/// The error of rows that follow the header, as text.
fn error(rows: &str) -> String {
    read(rows).unwrap_err().to_string()
}

#[test]
fn the_documented_example_is_read() {
    let recording =
        read("12345,lease,1,0,4194304\n13000,return,1,,\n14000,refuse,,2,99999\n").unwrap();
    let lease = What::Lease { id: 1, stream: 0, bytes: 4_194_304 };
    let refuse = What::Refuse { stream: 2, bytes: 99_999 };
    let events = [(12345, lease), (13000, What::Return { id: 1 }), (14000, refuse)];
    let events = events.map(|(nanoseconds, what)| Event { nanoseconds, what });
    assert_eq!(recording, Recording { events: events.into(), lost: 0 });
}

#[test]
fn columns_go_by_their_names_and_what_is_not_known_is_ignored() {
    let text = "\u{feff}# made by hand\r\n\r\n\"bytes\",tag,event, id ,nanoseconds,stream\r\n\
                64,\"a, b\",lease,7,1,3,more\r\n# half time\r\n,,\"return\",7, 2 ,\r\n";
    let recording = Recording::read(text.as_bytes()).unwrap();
    let what: Vec<What> = recording.events.iter().map(|event| event.what).collect();
    assert_eq!(what, [What::Lease { id: 7, stream: 3, bytes: 64 }, What::Return { id: 7 }]);
}

#[test]
fn a_row_that_is_wrong_is_named_with_what_was_expected_and_found() {
    let wrong = [
        ("1,grow,1,0,5\n", "line 2: expected `lease`, `return` or `refuse`, found \"grow\""),
        ("1\n", "line 2: expected `lease`, `return` or `refuse`, found \"\""),
        (
            "-1,lease,1,0,5\n",
            "line 2: expected a whole number in column `nanoseconds`, found \"-1\"",
        ),
        ("1,lease,1,0\n", "line 2: expected a whole number in column `bytes`, found \"\""),
        ("1,lease,1,0,1e9\n", "line 2: expected a whole number in column `bytes`, found \"1e9\""),
        (
            "1,refuse,,4294967296,5\n",
            "line 2: expected a whole number in column `stream`, found \"4294967296\"",
        ),
        (
            "1,return,9,,\n",
            "line 2: expected the id of a lease that is out, found 9, which was never leased or was returned before",
        ),
        (
            "1,lease,1,0,5\n2,return,1,,\n3,return,1,,\n",
            "line 4: expected the id of a lease that is out, found 1, which was never leased or was returned before",
        ),
        (
            "1,lease,1,0,5\n\n1,lease,1,0,5\n",
            "line 4: expected a new lease's id, found 1, which is still leased",
        ),
        (
            "5,lease,1,0,5\n4,return,1,,\n",
            "line 3: expected 5 nanoseconds or later, found 4: sort the recording by time",
        ),
    ];
    for (rows, expected) in wrong {
        assert_eq!(error(rows), expected);
    }
    assert!(read("1,lease,1,0,5\n2,return,1,,\n3,lease,1,0,5\n").is_ok(), "ids may come again");
}

#[test]
fn a_quotation_mark_without_another_ends_with_its_line() {
    let rows = "1,lease,1,0,5\n2,\"return,1,,\n3,return,1,,\n";
    assert_eq!(error(rows), "line 3: expected `lease`, `return` or `refuse`, found \"return,1,,\"");
    let commas = ",".repeat(MAX_LINE);
    assert!(error(&commas).starts_with("line 2: expected `lease`"));
}

#[test]
fn a_header_is_needed_and_has_each_column_once() {
    assert!(matches!(Recording::read(&b""[..]), Err(RecordingError::Empty)));
    assert!(matches!(Recording::read(&b"# nothing\n\n"[..]), Err(RecordingError::Empty)));
    for (text, expected) in [
        ("12,lease,1,0,4\n", "line 1: expected column `nanoseconds` once, found 0 in \"12,"),
        ("nanoseconds,event,id,stream,bytes,id\n", "line 1: expected column `id` once, found 2 in"),
    ] {
        let error = Recording::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn input_without_end_is_given_up_on() {
    let long = "expected at most 4096 bytes, found more: is this a recording?";
    assert_eq!(error(&"#".repeat(MAX_LINE + 1)), format!("line 2: {long}"));
    assert!(read(&"#".repeat(MAX_LINE)).is_ok());
    let error =
        |input: &mut dyn BufRead, limit| read_at_most(input, limit).unwrap_err().to_string();
    let mut endless = io::BufReader::new(io::repeat(b'x'));
    assert_eq!(error(&mut endless, 1), format!("line 1: {long}"));
    let binary = "line 1: expected text, found bytes that aren't UTF-8: is this a recording?";
    assert_eq!(error(&mut &b"\xff\n"[..], 1), binary);
    let three = format!("{HEADER}1,refuse,,0,1\n1,refuse,,0,1\n1,refuse,,0,1\n");
    let many = "line 4: expected at most 2 events, found more: cut the recording into parts";
    assert_eq!(error(&mut three.as_bytes(), 2), many);
    assert!(read_at_most(three.as_bytes(), 3).is_ok());
}

/// Any recording that a pool could have recorded.
fn recordings() -> impl Strategy<Value = Recording> {
    let steps = prop::collection::vec((0..3u8, any::<u32>(), any::<u32>(), any::<u32>()), 0..60);
    (steps, 0..3u64).prop_map(|(steps, lost)| {
        let (mut live, mut nanoseconds, mut events) = (Vec::new(), 0, Vec::new());
        for (id, (kind, gap, stream, bytes)) in (0..).zip(steps) {
            nanoseconds += u64::from(gap);
            let bytes = bytes as usize;
            let what = match kind {
                0 => What::Refuse { stream, bytes },
                1 if !live.is_empty() => What::Return { id: live.swap_remove(bytes % live.len()) },
                _ => {
                    live.push(id);
                    What::Lease { id, stream, bytes }
                }
            };
            events.push(Event { nanoseconds, what });
        }
        Recording { events, lost }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(recording in recordings()) {
        let mut text = Vec::new();
        recording.write(&mut text).unwrap();
        prop_assert_eq!(Recording::read(&text[..]).unwrap(), recording);
    }

    #[test]
    fn any_text_is_a_recording_or_an_error(text in "(nanoseconds,event,id,stream,bytes\n)?([0-9a-z,\"#\n\r é]|lease|return){0,60}") {
        if let Ok(recording) = Recording::read(text.as_bytes()) {
            let mut again = Vec::new();
            recording.write(&mut again).unwrap();
            prop_assert_eq!(Recording::read(&again[..]).unwrap().events, recording.events);
        }
    }
}
