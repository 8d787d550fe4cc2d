//! Conversions that don't come to their end.
#![allow(clippy::unwrap_used, reason = "tests say what must hold by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vecmill_engine::Engine;
use vecmill_engine::Stage;
use vecmill_engine::convert::{ConvertError, DType};

#[test]
fn a_conversion_that_is_stopped_leaves_nothing() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("new");
    let stopped = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stopped);
    let stop_at_once = Arc::new(move |stage: Stage| {
        if matches!(stage, Stage::Converting { .. }) {
            told.store(true, Ordering::Relaxed);
        }
    });
    let builder = Engine::builder().model(model.to_str().unwrap().parse().unwrap());
    let builder = builder.on_progress(stop_at_once);
    let error = builder.convert_unless(DType::F16, &output, &stopped).unwrap_err();
    assert!(matches!(error, ConvertError::Stopped), "{error}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
