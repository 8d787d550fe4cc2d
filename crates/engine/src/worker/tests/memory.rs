//! What becomes of batches when memory runs short.

use vecmill_encoder::Shape;

use super::*;
use crate::error::Fault;

#[test]
fn a_batch_that_gets_no_memory_is_split_and_its_vectors_are_right() {
    let mut rig = Rig::of(Setup::default());
    let answer = rig.ask(400);
    rig.queued(400);
    rig.faults().leave(4 * MIB);
    rig.start();
    let split = vectors(answer.recv().unwrap());
    let seen = rig.statistics();
    assert!(seen.peak_held_bytes <= 4 * MIB && seen.leases.refused > 0, "{seen:?}");
    assert!(
        rig.metrics()
            .contains("vecmill_batches_total{device=\"cpu\",outcome=\"split\",model=\"model\"}")
    );

    rig.faults().leave(usize::MAX);
    assert_eq!(split, vectors(rig.ask(400).recv().unwrap()), "in one batch as in parts");
    let seen = rig.statistics();
    assert_eq!((seen.overruns, seen.refused_with_room, seen.leased_bytes), (0, 0, 0));
}

#[test]
fn where_there_is_no_memory_at_all_every_caller_is_told_when_to_come_back() {
    let mut rig = Rig::of(Setup { patience: Duration::ZERO, ..Setup::default() });
    rig.faults().leave(0);
    let answers = [rig.ask(3), rig.ask(1), rig.ask(60)];
    rig.start();
    for answer in answers {
        let error = answer.recv().unwrap().unwrap_err();
        assert_eq!(error.fault(), Fault::Load, "{error}");
        assert!(error.retry_after().is_some() && error.to_string().contains("others use it"));
    }
    rig.faults().leave(usize::MAX);
    assert_eq!(vectors(rig.ask(3).recv().unwrap()).len(), 3, "and it works again");
}

#[test]
fn memory_that_comes_free_in_time_is_waited_for() {
    let mut rig = Rig::of(Setup::default());
    rig.faults().leave(0);
    let answer = rig.ask(2);
    rig.start();
    while rig.statistics().leases.refused < 5 {
        std::thread::yield_now();
    }
    assert!(answer.try_recv().is_err(), "nobody is turned away while there is patience");
    rig.faults().leave(usize::MAX);
    assert_eq!(vectors(answer.recv().unwrap()).len(), 2);
}

#[test]
fn a_batch_waits_for_another_ones_memory() {
    let mut rig = Rig::of(Setup { budget: 2 * MIB, ..Setup::default() });
    let device = Arc::clone(rig.device());
    let other = device.pool.lease(1, &()).unwrap();
    let answer = rig.ask(1);
    rig.start();
    drop(other);
    assert_eq!(vectors(answer.recv().unwrap()).len(), 1);
    assert_eq!(rig.statistics().leases.refused, 0);

    let mut rig = Rig::of(Setup { budget: 2 * MIB, patience: Duration::ZERO, ..Setup::default() });
    let device = Arc::clone(rig.device());
    let _other = device.pool.lease(1, &()).unwrap();
    let answer = rig.ask(1);
    rig.start();
    let error = answer.recv().unwrap().unwrap_err();
    assert!(matches!(error, RequestError::NoMemory { .. }), "{error:?}");
}

#[test]
fn an_input_that_the_budget_can_never_hold_is_told_the_numbers() {
    let mut rig = Rig::of(Setup { budget: MIB, ..Setup::default() });
    let answer = rig.ask(2);
    rig.start();
    let error = answer.recv().unwrap().unwrap_err();
    let RequestError::InputTooLarge { needed, available, .. } = error else { panic!("{error:?}") };
    assert_eq!((needed, available), (2 * MIB, MIB));
    assert_eq!(error.fault(), Fault::Server);
}

#[test]
fn a_refusal_leaves_a_recording() {
    let folder = tempfile::tempdir().unwrap();
    let recordings = RefusalRecordings::new(folder.path().to_owned());
    let mut rig = Rig::of(Setup {
        patience: Duration::ZERO,
        recordings: Some(recordings),
        ..Setup::default()
    });
    rig.faults().leave(0);
    let answer = rig.ask(4);
    rig.start();
    assert!(answer.recv().unwrap().is_err());
    drop(rig); // which waits for the writing
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 1, "one in a minute");
    let recording = Recording::read(&*std::fs::read(files[0].path()).unwrap()).unwrap();
    assert!(!recording.events.is_empty());
}

#[test]
fn batches_are_even_where_that_saves_memory() {
    let rig = Rig::of(Setup { batch_tokens: 3_000, ..Setup::default() });
    let answer = rig.ask(100); // 4,000 tokens
    rig.queued(100);
    let take = |warm| {
        let mut batch = vecmill_scheduler::JobBatch::new();
        assert!(rig.core.queue.next_batch(0, |_| warm, &mut batch));
        let size = batch.size();
        rig.core.queue.ran(0, CLASS, size, Duration::from_millis(1));
        size.tokens
    };
    assert_eq!(take(2_000), 2_000, "two batches either way");
    assert_eq!(take(1_000), 2_000, "one batch is not split");
    assert!(answer.recv().unwrap().is_err(), "its inputs were dropped");

    let rig = Rig::of(Setup::default());
    assert_eq!(rig.device().warm_tokens(CLASS), 0, "nothing is held yet");
    drop(rig.device().pool.lease(6 * MIB, &()).unwrap());
    let warm = rig.device().warm_tokens(CLASS);
    let needs = |tokens| {
        let shape = Shape { tokens, sequences: tokens, longest: 128 };
        rig.device().resident(CLASS).unwrap().encoder.peak_bytes(shape)
    };
    assert!(needs(warm) <= 6 * MIB && warm > 1_000 && warm < BATCH_TOKENS, "{warm}");
}
