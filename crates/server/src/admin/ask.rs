//! Asking the engine about its devices, and saying it as JSON.

use axum::response::Response;
use serde::Serialize;
use vecmill_engine::Engine;

use crate::failure::Failure;
use crate::loading::Model;
use crate::reply;

/// A reply about each device.
#[derive(Serialize)]
struct Devices<T> {
    devices: Vec<T>,
}

/// What is to be said about each device.
pub(super) fn json<T: Serialize>(devices: Vec<T>) -> Result<Response, Failure> {
    let text = serde_json::to_string(&Devices { devices }).map_err(|_| Failure::Internal)?;
    Ok(reply::json(text))
}

/// Asks beside the async threads: the answer waits for locks and, at times, for a driver.
pub(crate) async fn beside<T: Send + 'static>(
    model: &Model,
    ask: impl FnOnce(&Engine) -> T + Send + 'static,
) -> Result<T, Failure> {
    let engine = model.engine.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&engine));
    answer.await.map_err(|_| Failure::Internal)
}

/// The model's device that a query asks for.
pub(super) fn named_device(model: &Model, query: Option<&str>) -> Result<String, Failure> {
    let devices = &model.engine.info().devices;
    let known: Vec<String> = devices.iter().map(|device| device.name.to_string()).collect();
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
}
