//! What the operator can see and do: the devices ([`devices`]) and their memory, which [`figures`]
//! writes down.
//!
//! The choice behind it: these addresses are off unless [`Settings::admin`](crate::Settings::admin)
//! says otherwise, ask for a key where there are keys, and answer no web pages. They are not limited
//! in number like work is, so that they answer when the server is busiest.

mod devices;
mod figures;

use std::sync::Arc;

use axum::extract::RawQuery;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vecmill_engine::Recording;

use crate::Embedder;
use crate::api;
use crate::failure::Failure;
use crate::slot::Model;
pub(crate) use devices::{devices, drain, restore};
use figures::Figures;

const CSV: HeaderValue = HeaderValue::from_static("text/csv; charset=utf-8");

/// A reply about each device.
#[derive(Serialize)]
struct Devices<T> {
    devices: Vec<T>,
}

/// What one device gave back.
#[derive(Serialize)]
struct Trimmed {
    device: String,
    bytes: usize,
}

/// `GET /admin/memory`: each device's memory in numbers.
pub(crate) async fn memory(model: Model) -> Result<Response, Failure> {
    let memory = beside(&model, |embedder| embedder.memory()).await?;
    json(memory.iter().map(|(name, now)| Figures::new(name, now)).collect())
}

/// `POST /admin/memory/trim`: has what is unused given back, now.
pub(crate) async fn trim(model: Model) -> Result<Response, Failure> {
    let trimmed = beside(&model, |embedder| embedder.trim_memory()).await?;
    for (device, bytes) in &trimmed {
        tracing::info!(device, bytes, "memory given back on the operator's demand");
    }
    json(trimmed.into_iter().map(|(device, bytes)| Trimmed { device, bytes }).collect())
}

/// `GET /admin/memory/trace?device=NAME`: a device's leases, as a file for `vecmill-bench replay`.
pub(crate) async fn trace(model: Model, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let device = named_device(&model, query.as_deref())?;
    let wanted = device.clone();
    let csv = beside(&model, move |embedder| {
        let traces = embedder.memory_trace().into_iter();
        let trace = traces.into_iter().find(|(name, _)| *name == wanted)?.1;
        csv(&trace)
    });
    let csv = csv.await?.ok_or(Failure::Internal)?;
    let attachment = format!("attachment; filename=\"{}\"", file_name(&device));
    let attachment = HeaderValue::from_str(&attachment).map_err(|_| Failure::Internal)?;
    Ok(([(CONTENT_TYPE, CSV), (CONTENT_DISPOSITION, attachment)], csv).into_response())
}

fn json<T: Serialize>(devices: Vec<T>) -> Result<Response, Failure> {
    let text = serde_json::to_string(&Devices { devices }).map_err(|_| Failure::Internal)?;
    Ok(api::json(text))
}

/// Asks beside the async threads: the answer waits for locks and, at times, for a driver.
pub(crate) async fn beside<T: Send + 'static>(
    model: &Model,
    ask: impl FnOnce(&dyn Embedder) -> T + Send + 'static,
) -> Result<T, Failure> {
    let embedder = Arc::clone(&model.embedder);
    let answer = tokio::task::spawn_blocking(move || ask(&*embedder));
    answer.await.map_err(|_| Failure::Internal)
}

/// The model's device that a query asks for.
fn named_device(model: &Model, query: Option<&str>) -> Result<String, Failure> {
    let devices = &model.embedder.info().devices;
    let known: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
    device(query.unwrap_or_default(), &known)
}

/// The device that a query asks for.
fn device(query: &str, known: &[String]) -> Result<String, Failure> {
    let mut fields = form_urlencoded::parse(query.as_bytes());
    let asked = fields.find_map(|(name, value)| (name == "device").then_some(value));
    let Some(asked) = asked else {
        let problem = format!("is missing: add ?device={}", known.join(" or ?device="));
        return Err(Failure::Field { param: "device".to_owned(), problem });
    };
    let found = known.iter().find(|name| **name == asked).cloned();
    found
        .ok_or_else(|| Failure::UnknownDevice { device: asked.into_owned(), known: known.to_vec() })
}

fn csv(trace: &Recording) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).ok()?;
    Some(bytes)
}

/// What to save a device's trace as: `cuda:0/sms=32` is no name for a file.
fn file_name(device: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("vecmill-memory-{}.csv", device.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_asked_for_by_its_whole_name() {
        let known = ["cpu", "cuda:0/sms=32"].map(str::to_owned);
        for query in ["device=cuda:0/sms=32", "a=b&device=cuda%3A0%2Fsms%3D32"] {
            assert_eq!(device(query, &known).unwrap(), "cuda:0/sms=32", "{query}");
        }
        let missing = device("", &known).unwrap_err().to_string();
        assert_eq!(missing, "`device` is missing: add ?device=cpu or ?device=cuda:0/sms=32");
        for query in ["device=", "device=cuda:0", "device=CPU", "device=%ff"] {
            let error = device(query, &known).unwrap_err();
            assert!(matches!(error, Failure::UnknownDevice { .. }), "{query}");
        }
    }

    #[test]
    fn file_names_are_harmless() {
        assert_eq!(file_name("cpu"), "vecmill-memory-cpu.csv");
        assert_eq!(file_name("cuda:0/\"\r\n"), "vecmill-memory-cuda-0----.csv");
    }
}
