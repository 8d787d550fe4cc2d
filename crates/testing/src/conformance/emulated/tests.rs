//! What passes and what does not.

use vecmill_encoder::{NarrowPrecision, Precision};
use vecmill_model::DType;

use super::super::{lowering, operations, whole};
use super::{Defect, Emulated, Emulation};

const FORMATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

#[test]
fn half_precision_is_within_its_tolerances() {
    for format in FORMATS {
        lowering(&Emulation(format)).unwrap();
        operations(&Emulated::new(format, Defect::None)).unwrap();
    }
}

#[test]
fn defects_are_found_in_half_precision_too() {
    for format in FORMATS {
        let found = |defect| operations(&Emulated::new(format, defect)).unwrap_err().to_string();
        assert!(found(Defect::NoBias).contains("linear"), "{format:?}");
        assert!(found(Defect::OneKeyMore).contains("attention"), "{format:?}");
        assert!(found(Defect::NoRoot).contains("embed"), "{format:?}");
        assert!(found(Defect::Mean).contains("pool mean of"), "{format:?}");
        if format != DType::F8E4M3 {
            assert!(found(Defect::NoDeferredMean).contains("normalise"), "{format:?}");
        }
        if format != DType::F32 {
            found(Defect::Coarse);
        }
    }
}

#[test]
fn whole_models_agree_as_well_as_their_precision_allows() {
    for model in whole::models().unwrap() {
        for format in FORMATS {
            let backend = Emulated::new(format, Defect::None);
            let precision = whole::precision(&backend.lowering, &model).unwrap();
            let agreement = whole::model(backend, &model).unwrap();
            let narrow = precision
                .narrow
                .map(|narrow| NarrowPrecision { operands: narrow.operands / 32.0, ..narrow });
            let finer = Precision { storage: precision.storage / 32.0, narrow, ..precision };
            assert!(agreement.is_within(precision), "{format:?} {} {agreement:?}", model.display());
            assert!(
                format == DType::F32 || !agreement.is_within(finer),
                "{format:?} {agreement:?}"
            );
        }
    }
}
