//! The server on a real engine with a small model: whether it is ready, and what it says when not.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

mod support;

use support::TestServer;
use vecmill_engine::Engine;
use vecmill_server::Settings;

const ASK: &str = r#"{"model":"any","input":["a quick brown fox","jumps"]}"#;

fn server() -> (TestServer, Engine) {
    TestServer::with_engine(Settings { admin: true, ..Settings::default() })
}

#[test]
fn while_no_device_serves_it_is_not_ready_and_refuses_at_once() {
    let (server, _) = server();
    let change = |what: &str| server.post(&format!("/admin/devices/{what}?device=cpu"), "");
    for _ in 0..2 {
        assert_eq!(server.get("/ready").status, 200);
        assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
        assert_eq!(change("drain").status, 200);
        for answer in [server.get("/ready"), server.post("/v1/embeddings", ASK)] {
            assert!(answer.header("retry-after").is_some());
            let error = answer.openai_error(503, Some("no_device"));
            assert!(error["message"].as_str().unwrap().contains("cpu is drained"), "{error}");
        }
        assert_eq!(server.post("/embed", r#"{"inputs":"fox"}"#).status, 503);
        assert_eq!(server.get("/health").status, 200, "the process is well");
        assert_eq!(change("restore").status, 200);
    }
}

#[test]
fn an_engine_that_stops_is_not_ready() {
    let (server, engine) = server();
    engine.shutdown();
    server.get("/ready").openai_error(503, Some("shutting_down"));
    assert_eq!(server.get("/metrics").status, 200);
}

#[test]
fn metrics_tell_how_long_batches_took_of_what_was_predicted() {
    let (server, _) = server();
    for _ in 0..3 {
        assert_eq!(server.post("/v1/embeddings", ASK).status, 200);
    }
    let answer = server.get("/metrics");
    let metrics = answer.text();
    // Nothing is predicted before the first batch, or a kept speed.
    let counted = support::value(metrics, "vecmill_batch_time_ratio_count{device=\"cpu\"");
    assert!(counted >= 2, "{metrics}");
    for bound in ["0.5", "2.0", "10.0", "100.0"] {
        let bucket = format!("vecmill_batch_time_ratio_bucket{{le=\"{bound}\",device=\"cpu\",");
        assert!(metrics.contains(&bucket), "{bucket} in {metrics}");
    }
}
