//! The devices as the scheduler sees them, and taking one out of service for a while.

use std::collections::HashMap;

use axum::extract::RawQuery;
use axum::response::Response;
use serde::Serialize;
use vecmill_engine::{DeviceName, DeviceStatistics, Engine, GpuState};

use super::ask::{beside, json, named_device};
use crate::failure::Failure;
use crate::loading::Model;

/// One device in numbers.
#[derive(Serialize)]
struct DeviceReport {
    device: String,
    state: &'static str,
    weight: f64,
    /// `null` while it is not known.
    speed: Option<Speed>,
    prediction_error: f64,
    batch_tokens: usize,
    running_batches: usize,
    backlog_seconds: f64,
    batches: u64,
    tokens: u64,
    busy_seconds: f64,
    failures: u64,
    stalls: u64,
    /// What it says of itself, `null` if nothing.
    sensors: Option<GpuState>,
}

/// `seconds = batch + token · tokens + square · Σ length²`
#[derive(Serialize)]
struct Speed {
    batch_seconds: f64,
    token_seconds: f64,
    square_seconds: f64,
}

impl DeviceReport {
    /// How each device of `engine` stands.
    fn all(engine: &Engine) -> Vec<Self> {
        let mut states: HashMap<_, _> = engine.device_states().into_iter().collect();
        let devices = engine.scheduling().into_iter();
        let standing = |(device, now): (DeviceName, DeviceStatistics)| {
            let sensors = states.remove(&device);
            Self::new(device.to_string(), &now, sensors)
        };
        devices.map(standing).collect()
    }

    fn new(device: String, now: &DeviceStatistics, sensors: Option<GpuState>) -> Self {
        let speed = now.speed.map(|speed| Speed {
            batch_seconds: speed.fixed,
            token_seconds: speed.per_token,
            square_seconds: speed.per_square,
        });
        Self {
            device,
            state: now.health.name(),
            weight: now.weight,
            speed,
            prediction_error: now.mean_error,
            batch_tokens: now.batch_tokens,
            running_batches: now.running_batches,
            backlog_seconds: now.backlog.as_secs_f64(),
            batches: now.batches,
            tokens: now.tokens,
            busy_seconds: now.busy.as_secs_f64(),
            failures: now.failures,
            stalls: now.stalls,
            sensors,
        }
    }
}

/// `GET /admin/devices`: how each device stands.
pub(crate) async fn reports(model: Model) -> Result<Response, Failure> {
    json(beside(&model, DeviceReport::all).await?)
}

/// `POST /admin/devices/drain?device=NAME`: it finishes what it has begun and gets nothing more.
pub(crate) async fn drain(model: Model, query: RawQuery) -> Result<Response, Failure> {
    change(model, query, "drained", |engine, device| engine.drain(device)).await
}

/// `POST /admin/devices/restore?device=NAME`: it gets work again.
pub(crate) async fn restore(model: Model, query: RawQuery) -> Result<Response, Failure> {
    change(model, query, "restored", |engine, device| engine.restore(device)).await
}

async fn change(
    model: Model,
    RawQuery(query): RawQuery,
    what: &'static str,
    act: impl FnOnce(&Engine, &str) -> bool + Send + 'static,
) -> Result<Response, Failure> {
    let device = named_device(&model, query.as_deref())?;
    tracing::info!(device, "{what} on the operator's demand");
    let devices = beside(&model, move |engine| {
        act(engine, &device);
        DeviceReport::all(engine)
    });
    json(devices.await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vecmill_engine::ModelRef;
    use vecmill_engine::{DeviceSpec, Throttling};

    #[test]
    fn what_a_device_says_of_itself_stands_beside_its_name() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/models/bert-mean");
        let engine = Engine::builder().model(ModelRef::Folder(model.into()));
        let engine = engine.devices(vec![DeviceSpec::CPU]).cpu_threads(1).start().unwrap();
        let now = engine.scheduling()[0].1;
        let throttling = Some(Throttling { power_cap: true, ..Throttling::default() });
        let state = GpuState { throttling, power_watts: Some(700.5), ..GpuState::default() };
        let written = |sensors| {
            serde_json::to_value(DeviceReport::new("cuda:1".to_owned(), &now, sensors)).unwrap()
        };
        assert!(written(None)["sensors"].is_null());
        let told = written(Some(state));
        assert_eq!((&told["device"], &told["state"]), (&"cuda:1".into(), &"serving".into()));
        assert_eq!(told["sensors"]["power_watts"], 700.5);
        assert_eq!(told["sensors"]["throttling"]["power_cap"], true);
        assert!(told["sensors"]["temperature_celsius"].is_null(), "{told}");
    }
}
