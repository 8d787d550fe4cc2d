//! What can't be brought about from outside: somebody else acts between two steps.

use super::*;
use crate::host::HostSource;

const MIB: usize = 1 << 20;

#[test]
fn a_refusal_is_blamed_on_the_pool_only_if_there_was_room_then() {
    let pool = Pool::new(HostSource, 8 * MIB);
    let shared = &*pool.shared;
    let lease = pool.lease(8 * MIB, &()).unwrap();
    let refused = shared.lease(4 * MIB, &()).unwrap_err();
    drop(lease); // before anybody could ask how much room there is
    shared.refused(4 * MIB, &(), &refused);
    assert_eq!(pool.statistics().refused_with_room, 0);
    let unfounded = LeaseError::Busy { needed: 4 * MIB, leased: 0, available: 8 * MIB };
    shared.refused(4 * MIB, &(), &unfounded);
    assert_eq!(pool.statistics().refused_with_room, 1);
}
