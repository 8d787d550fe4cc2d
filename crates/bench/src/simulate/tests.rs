use super::*;

const FLEETS: [&[f64]; 4] = [&[1.0, 1.0], &[1.0, 0.25], &[1.0, 1.0, 0.5, 0.25], &[1.0, 0.02]];

fn fleet(speeds: &[f64], mishap: Option<Mishap>) -> Vec<Device> {
    let Model(full) = MODEL.parse().unwrap();
    let mut devices: Vec<_> = speeds.iter().map(|&speed| Device::new(speed, full)).collect();
    devices.last_mut().unwrap().mishap = mishap;
    devices
}

const MIX: Mix = Mix { large: LARGE, longest: LONGEST, seed: 7 };

fn work(load: Option<f64>) -> Work<'static> {
    Work { load, requests: 20_000, mix: MIX, trace: None }
}

fn row(speeds: &[f64], mishap: Option<Mishap>, load: Option<f64>, policy: &str) -> Row {
    let work = work(load);
    simulate(&fleet(speeds, mishap), &work, policy).unwrap()
}

#[test]
fn earliest_finish_is_never_worse_than_the_best_by_a_twentieth() {
    for speeds in FLEETS {
        for load in [0.8, 0.95] {
            let of = |policy: &str| row(speeds, None, Some(load), policy).figures;
            let ours = of("earliest-finish");
            for other in PolicyName::ALL.map(PolicyName::as_str) {
                let theirs = of(other);
                assert!(
                    ours.p99_ms <= 1.05 * theirs.p99_ms && ours.mean_ms <= 1.05 * theirs.mean_ms,
                    "{speeds:?} at {load}, {other}: {ours:?} {theirs:?}"
                );
            }
        }
    }
}

#[test]
fn on_unequal_devices_round_robin_uses_a_third_less_and_waits_longer() {
    for speeds in &FLEETS[1..] {
        for load in [0.8, 0.95] {
            let of = |policy: &str| row(speeds, None, Some(load), policy).figures;
            let (ours, turns) = (of("earliest-finish"), of("round-robin"));
            assert!(ours.spread <= 0.7 * turns.spread, "{speeds:?} {load}: {ours:?} {turns:?}");
            assert!(ours.mean_wait_ms <= 0.75 * turns.mean_wait_ms, "{speeds:?} {load}");
        }
    }
}

#[test]
fn work_that_is_there_at_once_takes_hardly_longer_than_it_must() {
    for speeds in FLEETS {
        let ratio = row(speeds, None, None, "earliest-finish").of_least_makespan.unwrap();
        assert!((0.98..1.1).contains(&ratio), "{speeds:?}: {ratio}");
    }
}

#[test]
fn whatever_befalls_a_device_each_request_is_answered() {
    for mishap in [Mishap::SlowsDown(3.0), Mishap::Fails, Mishap::Hangs] {
        for policy in PolicyName::ALL.map(PolicyName::as_str) {
            let figures = row(&[1.0, 1.0], Some(mishap), Some(0.4), policy).figures;
            assert_eq!((figures.answered, figures.refused), (20_000, 0), "{mishap:?} {policy}");
        }
    }
}

#[test]
fn a_threefold_slowdown_is_learned_and_costs_little() {
    let slows = Some(Mishap::SlowsDown(3.0));
    let of = |policy: &str| row(&[1.0, 1.0], slows, Some(0.6), policy).figures;
    let (ours, turns) = (of("earliest-finish"), of("round-robin"));
    assert!((ours.weights[1] - 0.25).abs() < 0.03, "{ours:?}");
    assert!(ours.mean_errors.iter().all(|&error| error < 0.1), "{ours:?}");
    assert!(ours.p99_ms < 0.2 * turns.p99_ms, "{} and {} ms", ours.p99_ms, turns.p99_ms);
}

#[test]
fn devices_that_wait_for_launches_most_of_the_time_are_used_well_too() {
    let Model(launches) = "5e-3,2e-7,0".parse().unwrap();
    let devices = [1.0, 0.25].map(|speed| Device::new(speed, launches));
    let work = work(Some(0.8));
    let of = |policy: &str| simulate(&devices, &work, policy).unwrap().figures;
    let ours = of("earliest-finish");
    for other in PolicyName::ALL.map(PolicyName::as_str) {
        let theirs = of(other);
        assert!(ours.p99_ms <= 1.05 * theirs.p99_ms, "{other}: {ours:?} {theirs:?}");
    }
    assert!("1e-3,0,0".parse::<Model>().is_err() && "1,2".parse::<Model>().is_err());
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let run = || row(&[1.0, 0.25], None, Some(0.8), "earliest-finish").figures;
    assert_eq!(format!("{:?}", run()), format!("{:?}", run()));
}

#[test]
fn a_trace_of_made_requests_is_the_same_run() {
    let devices = fleet(&[1.0, 0.25], None);
    let made = simulate(&devices, &work(Some(0.8)), "earliest-finish").unwrap();
    let whole: f64 = devices.iter().map(Device::rate).sum();
    let arrivals: Vec<Arrival> = MIX.requests(0).take(20_000).collect();
    let own = Traffic { arrivals }.of_requests(0.8 * whole / MIX.mean_tokens());
    let of = |load: Option<f64>, trace: &Traffic| {
        let trace = Work { trace: Some(trace), ..work(load) };
        simulate(&devices, &trace, "earliest-finish").unwrap()
    };
    let read = of(None, &own);
    assert!((read.load.unwrap() - 0.8).abs() < 0.04, "{:?}", read.load);
    assert!((read.figures.p99_ms / made.figures.p99_ms - 1.0).abs() < 0.1, "{:?}", read.figures);
    let twice = of(Some(2.0), &own);
    assert!(twice.figures.p99_ms > 10.0 * read.figures.p99_ms, "{:?}", twice.figures);
    let at_once = own.of_requests(f64::INFINITY);
    assert!((of(None, &at_once).of_least_makespan.unwrap() - 1.0).abs() < 0.1);
}

#[test]
fn a_thousand_unequal_devices_share_the_work_and_nobody_waits_longer_than_on_four() {
    let four = [1.0, 1.0, 0.5, 0.25];
    let on_four = row(&four, None, Some(0.8), "earliest-finish").figures;
    let work = Work { requests: 200_000, ..work(Some(0.8)) };
    let figures =
        simulate(&fleet(&four.repeat(250), None), &work, "earliest-finish").unwrap().figures;
    assert_eq!((figures.answered, figures.refused), (200_000, 0));
    assert!(figures.mean_wait_ms < on_four.mean_wait_ms && figures.p99_ms < on_four.p99_ms);
}

#[test]
fn fleets_are_written_one_by_one_or_by_their_number() {
    let fleet = |text: &str| text.parse::<Fleet>().map(|Fleet(speeds)| speeds);
    assert_eq!(fleet("1, 2x0.5").unwrap(), [1.0, 0.5, 0.5]);
    assert_eq!(fleet("10000x1").unwrap().len(), MOST_DEVICES);
    for wrong in ["", "1,,1", "0x1", "x1", "2x", "-1", "2x0", "1x2000", "10000x1,1"] {
        assert!(fleet(wrong).is_err(), "{wrong:?}");
    }
}
