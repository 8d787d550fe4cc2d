//! The operator's addresses: who may use them, and what they say.

mod support;

use support::{ASK, TestServer};
use vecmill_engine::{Engine, Recording};
use vecmill_server::Settings;

const MEMORY: &str = "/admin/memory";
const TRIM: &str = "/admin/memory/trim";
const RECORDING: &str = "/admin/memory/recording?device=cpu";

fn admin() -> Settings {
    Settings { admin: true, ..Settings::default() }
}

/// A server whose device has leased, and got back, some memory.
fn server(settings: Settings) -> (TestServer, Engine) {
    let (server, engine) = TestServer::with_engine(settings);
    let key = "authorization: Bearer k3y";
    assert_eq!(server.request("POST", "/v1/embeddings", &[key], ASK.as_bytes()).status, 200);
    (server, engine)
}

/// Of the device's memory, in bytes: nothing once it was trimmed.
fn held(engine: &Engine) -> usize {
    engine.memory()[0].1.held_bytes
}

#[test]
fn they_are_off_unless_asked_for() {
    let server = TestServer::start(Settings::default());
    for path in [MEMORY, RECORDING] {
        server.get(path).openai_error(404, Some("unknown_url"));
    }
    server.post(TRIM, "").openai_error(404, Some("unknown_url"));
}

#[test]
fn they_ask_for_a_key_where_there_are_keys() {
    let (server, engine) = server(Settings { api_keys: vec!["k3y".parse().unwrap()], ..admin() });
    for header in ["x: y", "authorization: Bearer wrong"] {
        for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", RECORDING)] {
            let answer = server.request(method, path, &[header], b"");
            answer.openai_error(401, Some("invalid_api_key"));
        }
    }
    assert!(held(&engine) > 0);
    let key = "authorization: Bearer k3y";
    for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", RECORDING)] {
        assert_eq!(server.request(method, path, &[key], b"").status, 200, "{path}");
    }
    assert_eq!(held(&engine), 0);
}

#[test]
fn they_answer_no_web_pages_but_allowed_ones() {
    let allowed = "https://app.example.com".to_owned();
    let (server, engine) = server(Settings { cors_allow_origin: vec![allowed], ..admin() });
    for origin in ["http://evil.example", "null", "https://app.example.com.evil.example"] {
        let header = format!("origin: {origin}");
        let error = server.request("POST", TRIM, &[&header], b"");
        let error = error.openai_error(403, Some("origin_not_allowed"));
        assert!(error["message"].as_str().unwrap().contains(origin), "{error}");
    }
    assert!(held(&engine) > 0);
    let answer = server.request("POST", TRIM, &["origin: https://app.example.com"], b"");
    assert_eq!(answer.status, 200);
}

#[test]
fn methods_are_those_that_suit() {
    let (server, engine) = server(admin());
    for (method, path) in [("POST", MEMORY), ("DELETE", MEMORY), ("GET", TRIM), ("POST", RECORDING)]
    {
        server.request(method, path, &[], b"").openai_error(405, Some("method_not_supported"));
    }
    assert!(held(&engine) > 0);
}

#[test]
fn the_model_must_be_loaded() {
    let (server, loading) = TestServer::loading(admin());
    for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", RECORDING)] {
        server.request(method, path, &[], b"").openai_error(503, Some("model_loading"));
    }
    loading.ready(support::engine::shared());
    assert_eq!(server.get(MEMORY).status, 200);
}

#[test]
fn memory_is_told_for_each_device() {
    let (server, engine) = server(admin());
    let answer = server.get(MEMORY).json();
    let devices = answer["devices"].as_array().unwrap();
    let memory = engine.memory();
    assert_eq!((devices.len(), memory.len()), (1, 1));
    let (device, now) = (&devices[0], &memory[0].1);
    assert_eq!(device["device"], "cpu");
    assert_eq!(device["budget_bytes"], now.budget_bytes);
    assert_eq!(device["reserved_bytes"], now.reserved_bytes);
    assert_eq!(device["held_bytes"], now.held_bytes);
    assert_eq!((&device["requested_bytes"], &device["leased_bytes"]), (&0.into(), &0.into()));
    assert_eq!(device["free"]["bytes"], now.budget_bytes - now.reserved_bytes);
    assert_eq!(device["free"]["largest_idle_bytes"], now.largest_idle_bytes);
    assert!(now.largest_idle_bytes > 0 && now.held_bytes > 0 && now.reserved_bytes > 0, "{now:?}");
    assert_eq!(device["peak"]["requested_bytes"], now.peak_requested_bytes);
    let leases = &device["leases"];
    assert_eq!(
        (&leases["warm"], &leases["grown"]),
        (&now.leases.warm.into(), &now.leases.grown.into())
    );
    assert!(now.leases.grown >= 1 && leases["warm_ratio"].is_f64(), "{leases}");
    assert_eq!(device["fragmentation"]["internal"], now.internal_fragmentation());
    assert!(device["calls"].is_object() && device["failures"]["last"].is_null(), "{device}");
    assert!(device["lease_time"]["buckets"].is_array(), "{device}");
}

#[test]
fn devices_are_told_drained_and_restored() {
    let (server, engine) = server(admin());
    let devices = server.get("/admin/devices").json();
    let device = &devices["devices"][0];
    assert_eq!((&device["device"], &device["state"]), (&"cpu".into(), &"serving".into()));
    let now = engine.scheduling()[0].1;
    assert_eq!(device["batches"], now.batches);
    assert_eq!(device["speed"].is_object(), now.speed.is_some());
    assert!(device["sensors"].is_null(), "a CPU says nothing of itself: {device}");
    let change = |what: &str| {
        let answer = server.post(&format!("/admin/devices/{what}?device=cpu"), "").json();
        answer["devices"][0]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(change("drain"), "drained");
    assert_eq!(change("restore"), "serving");
    let error = server.post("/admin/devices/drain?device=tpu:0", "");
    error.openai_error(404, Some("device_not_found"));
    server.get("/admin/devices/drain?device=cpu").openai_error(405, Some("method_not_supported"));
}

#[test]
fn trimming_gives_back_what_is_unused() {
    let (server, engine) = server(admin());
    let bytes = held(&engine);
    assert!(bytes > 0);
    let trimmed = server.post(TRIM, "").json();
    assert_eq!(trimmed, serde_json::json!({"devices": [{"device": "cpu", "bytes": bytes}]}));
    assert_eq!(held(&engine), 0);
}

#[test]
fn a_recording_is_a_file_that_can_be_replayed() {
    let (server, engine) = server(admin());
    let answer = server.get(RECORDING);
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
    let attachment = "attachment; filename=\"vecmill-memory-cpu.csv\"";
    assert_eq!(answer.header("content-disposition"), Some(attachment));
    let recording = Recording::read(&answer.body[..]).unwrap();
    assert!(recording.events.len() >= 2, "{recording:?}");
    assert_eq!(recording.events.len(), engine.memory_recordings()[0].1.events.len());
}

#[test]
fn a_recording_is_of_a_device_that_there_is() {
    let server = TestServer::start(admin());
    let error = server.get("/admin/memory/recording?device=tpu:0");
    let error = error.openai_error(404, Some("device_not_found"));
    assert_eq!(error["param"], "device");
    assert_eq!(error["message"], "there is no device 'tpu:0': expected cpu");

    for path in ["/admin/memory/recording", "/admin/memory/recording?devise=cpu"] {
        let error = server.get(path).openai_error(400, None);
        assert_eq!(error["param"], "device");
        assert!(error["message"].as_str().unwrap().contains("?device=cpu"), "{error}");
    }
}
