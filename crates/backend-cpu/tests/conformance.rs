//! The CPU against the suite that every backend must pass.

use vecmill_backend_cpu::{CpuBackend, CpuLowering};
use vecmill_testing::{FaultPlan, Faulty, conformance};

#[test]
fn programs_of_buckets_hold_for_fewer_rows() {
    for threads in [1, 2, 64] {
        conformance::lowering(&CpuLowering::new(threads)).unwrap();
    }
}

#[test]
fn every_operation_is_within_rounding_of_the_reference() {
    for threads in [1, 2, 5] {
        conformance::operations(&CpuBackend::new(threads).unwrap()).unwrap();
    }
}

#[test]
fn every_architecture_agrees_with_transformers() {
    for model in conformance::models().unwrap() {
        let agreement = conformance::model(CpuBackend::new(2).unwrap(), &model).unwrap();
        println!("{} {agreement:?}", model.display());
        let precision = conformance::precision(&CpuLowering::new(2), &model).unwrap();
        assert!(agreement.is_within(precision), "{}: {agreement:?}", model.display());
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
    for model in conformance::models().unwrap() {
        let difference = conformance::independence(CpuBackend::new(2).unwrap(), &model).unwrap();
        assert_eq!(difference, 0.0, "{}", model.display());
    }
}

#[test]
fn padding_changes_no_vector() {
    for model in conformance::models().unwrap() {
        let padded = || {
            let plan = FaultPlan::default();
            plan.pad();
            Faulty::new(CpuBackend::new(2).unwrap(), plan)
        };
        let exact = conformance::model(CpuBackend::new(2).unwrap(), &model).unwrap();
        assert_eq!(conformance::model(padded(), &model).unwrap(), exact, "{}", model.display());
        assert_eq!(conformance::independence(padded(), &model).unwrap(), 0.0);
    }
}
