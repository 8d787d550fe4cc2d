//! The operator's addresses: who may use them, and what they say.

mod support;

use support::{BUDGET, Fake, TestServer};
use vecmill_engine::Recording;
use vecmill_server::Settings;

const MEMORY: &str = "/admin/memory";
const TRIM: &str = "/admin/memory/trim";
const TRACE: &str = "/admin/memory/trace?device=cpu";

/// What the memory of `cuda:0` was asked for.
const ASKED: usize = 5_000_000;

fn admin() -> Settings {
    Settings { admin: true, ..Settings::default() }
}

/// A server whose first device has leased, and got back, some memory.
fn server(settings: Settings) -> (TestServer, Fake) {
    let (server, fake) = TestServer::start(settings);
    drop(fake.pools[0].lease(ASKED, &()));
    (server, fake)
}

#[test]
fn they_are_off_unless_asked_for() {
    let (server, _) = server(Settings::default());
    for path in [MEMORY, TRACE] {
        server.get(path).openai_error(404, Some("unknown_url"));
    }
    server.post(TRIM, "").openai_error(404, Some("unknown_url"));
}

#[test]
fn they_ask_for_a_key_where_there_are_keys() {
    let (server, fake) = server(Settings { api_keys: vec!["k3y".parse().unwrap()], ..admin() });
    for header in ["x: y", "authorization: Bearer wrong"] {
        for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", TRACE)] {
            let answer = server.request(method, path, &[header], b"");
            answer.openai_error(401, Some("invalid_api_key"));
        }
    }
    assert_eq!(fake.pools[0].statistics().trims, 0);
    let key = "authorization: Bearer k3y";
    for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", TRACE)] {
        assert_eq!(server.request(method, path, &[key], b"").status, 200, "{path}");
    }
}

#[test]
fn they_answer_no_web_pages_but_allowed_ones() {
    let allowed = "https://app.example.com".to_owned();
    let (server, fake) = server(Settings { cors_allow_origin: vec![allowed], ..admin() });
    for origin in ["http://evil.example", "null", "https://app.example.com.evil.example"] {
        let header = format!("origin: {origin}");
        let error = server.request("POST", TRIM, &[&header], b"");
        let error = error.openai_error(403, Some("origin_not_allowed"));
        assert!(error["message"].as_str().unwrap().contains(origin), "{error}");
    }
    assert_eq!(fake.pools[0].statistics().trims, 0);
    let answer = server.request("POST", TRIM, &["origin: https://app.example.com"], b"");
    assert_eq!(answer.status, 200);
}

#[test]
fn methods_are_those_that_suit() {
    let (server, fake) = server(admin());
    for (method, path) in [("POST", MEMORY), ("DELETE", MEMORY), ("GET", TRIM), ("POST", TRACE)] {
        server.request(method, path, &[], b"").openai_error(405, Some("method_not_supported"));
    }
    assert_eq!(fake.pools[0].statistics().trims, 0);
}

#[test]
fn the_model_must_be_loaded() {
    let (server, slot) = TestServer::loading(admin());
    for (method, path) in [("GET", MEMORY), ("POST", TRIM), ("GET", TRACE)] {
        server.request(method, path, &[], b"").openai_error(503, Some("model_loading"));
    }
    slot.ready(Fake::new());
    assert_eq!(server.get(MEMORY).status, 200);
}

#[test]
fn memory_is_told_for_each_device() {
    let (server, fake) = server(admin());
    let lease = fake.pools[0].lease(ASKED, &()).unwrap();
    let memory = server.get(MEMORY).json();
    let devices = memory["devices"].as_array().unwrap();
    let names: Vec<_> = devices.iter().map(|device| device["device"].as_str().unwrap()).collect();
    assert_eq!(names, ["cuda:0", "cpu", "cuda:1"]);

    let device = &devices[0];
    assert_eq!(device["budget_bytes"], BUDGET);
    assert_eq!(device["requested_bytes"], ASKED);
    assert_eq!(device["leased_bytes"], lease.bytes());
    assert_eq!(device["held_bytes"], device["leased_bytes"]);
    assert_eq!(device["stranded_bytes"], lease.bytes() - ASKED);
    assert_eq!(device["free"]["bytes"], BUDGET - lease.bytes());
    assert_eq!(device["free"]["mappable_bytes"], BUDGET - lease.bytes());
    assert_eq!(device["free"]["largest_idle_bytes"], 0);
    assert_eq!(device["peak"]["requested_bytes"], ASKED);
    assert_eq!(device["leases"]["warm"], 1);
    assert_eq!(device["leases"]["grown"], 1);
    assert_eq!(device["leases"]["warm_ratio"], 0.5);
    assert!(device["fragmentation"]["internal"].as_f64().unwrap() > 1.0, "{device}");
    assert!(device["calls"].is_object() && device["failures"]["last"].is_null(), "{device}");
    assert!(device["lease_time"]["buckets"].is_array(), "{device}");

    assert_eq!(devices[1]["held_bytes"], 0);
    assert!(devices[1]["leases"]["warm_ratio"].is_null());
}

#[test]
fn devices_are_told_drained_and_restored() {
    let (server, _) = server(admin());
    let devices = server.get("/admin/devices").json();
    let device = &devices["devices"][1];
    assert_eq!((&device["device"], &device["state"]), (&"cpu".into(), &"serving".into()));
    assert_eq!(device["speed"]["batch_seconds"], 0.5);
    let drained = server.post("/admin/devices/drain?device=cpu", "").json();
    let states = |answer: &serde_json::Value| -> Vec<String> {
        let devices = answer["devices"].as_array().unwrap();
        devices.iter().map(|device| device["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&drained), ["serving", "drained", "serving"]);
    let restored = server.post("/admin/devices/restore?device=cpu", "").json();
    assert_eq!(states(&restored), ["serving"; 3]);
    let error = server.post("/admin/devices/drain?device=tpu:0", "");
    error.openai_error(404, Some("device_not_found"));
    server.get("/admin/devices/drain?device=cpu").openai_error(405, Some("method_not_supported"));
}

#[test]
fn what_a_device_says_of_itself_stands_beside_its_name() {
    let (server, _) = server(admin());
    let devices = server.get("/admin/devices").json();
    let [silent, _, told] = [0, 1, 2].map(|index| &devices["devices"][index]);
    assert!(silent["sensors"].is_null(), "{silent}");
    assert_eq!(
        (&told["device"], &told["sensors"]["power_watts"]),
        (&"cuda:1".into(), &700.5.into())
    );
    assert_eq!(told["sensors"]["throttling"]["power_cap"], true);
    assert!(told["sensors"]["temperature_celsius"].is_null(), "{told}");
}

#[test]
fn trimming_gives_back_what_is_unused() {
    let (server, fake) = server(admin());
    let held = fake.pools[0].statistics().held_bytes;
    let trimmed = server.post(TRIM, "").json();
    let expected = serde_json::json!({"devices": [
        {"device": "cuda:0", "bytes": held},
        {"device": "cpu", "bytes": 0},
        {"device": "cuda:1", "bytes": 0},
    ]});
    assert_eq!(trimmed, expected);
    assert_eq!(fake.pools[0].statistics().held_bytes, 0);

    let lease = fake.pools[0].lease(ASKED, &()).unwrap();
    assert_eq!(server.post(TRIM, "").json()["devices"][0]["bytes"], 0, "it is in use");
    drop(lease);
}

#[test]
fn a_trace_is_a_file_that_can_be_replayed() {
    let (server, fake) = server(admin());
    drop(fake.pools[1].lease(ASKED, &()).unwrap());
    let answer = server.get(TRACE);
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
    let attachment = "attachment; filename=\"vecmill-memory-cpu.csv\"";
    assert_eq!(answer.header("content-disposition"), Some(attachment));
    let trace = Recording::read(&answer.body[..]).unwrap();
    assert_eq!(trace.events.len(), 2, "{trace:?}");

    let answer = server.get("/admin/memory/trace?device=cuda%3A1");
    assert!(Recording::read(&answer.body[..]).unwrap().events.is_empty());
}

#[test]
fn a_trace_is_of_a_device_that_there_is() {
    let (server, _) = server(admin());
    let error = server.get("/admin/memory/trace?device=tpu:0");
    let error = error.openai_error(404, Some("device_not_found"));
    assert_eq!(error["param"], "device");
    let message = "there is no device 'tpu:0': expected cuda:0 or cpu or cuda:1";
    assert_eq!(error["message"], message);

    for path in ["/admin/memory/trace", "/admin/memory/trace?devise=cpu"] {
        let error = server.get(path).openai_error(400, None);
        assert_eq!(error["param"], "device");
        assert!(error["message"].as_str().unwrap().contains("?device=cpu"), "{error}");
    }
}
