//! The map ABI: what is pinned in kernels, and what "visible" means.

use std::net::IpAddr;

use proptest::prelude::*;
use storage_schema::map::cell::visible;
use storage_schema::map::{Affinity, FINGERPRINT, FLOW_FINGERPRINT, FrontendKey, NEVER, key};

/// A changed fingerprint gives every node a new generation when its agent is upgraded. That is right when the ABI has
/// changed; then write the new number here.
#[test]
fn the_abi_changes_on_purpose_only() {
    assert_eq!(format!("{FINGERPRINT:#018x}"), "0x7062c11209d087a9");
    assert_eq!(format!("{FLOW_FINGERPRINT:#018x}"), "0x3389d19df351e66c");
    assert_eq!(format!("{:#018x}", Affinity::FINGERPRINT), "0x8fc46606b5c5fe39");
}

#[test]
fn the_newest_version_that_is_not_above_the_reader_holds() {
    for (epochs, epoch, expected) in [
        ([0, 0], 0, Some(0)),
        ([0, 0], 9, Some(0)),
        ([3, 7], 2, None),
        ([3, 7], 3, Some(0)),
        ([3, 7], 6, Some(0)),
        ([3, 7], 7, Some(1)),
        ([7, 3], 6, Some(1)),
        ([7, 3], 8, Some(0)),
        ([NEVER, 3], 8, Some(1)),
        ([NEVER, NEVER], 8, None),
    ] {
        assert_eq!(visible(epochs, epoch), expected, "{epochs:?} at {epoch}");
    }
}

#[test]
fn ipv4_and_its_mapped_form_are_one_key() {
    let v4: IpAddr = "10.96.0.1".parse().expect("an address");
    let mapped: IpAddr = "::ffff:10.96.0.1".parse().expect("an address");
    let key = FrontendKey::new(v4, 80, 6);
    assert_eq!(key, FrontendKey::new(mapped, 80, 6));
    assert_eq!(key.address, key::mapped(u32::from_ne_bytes([10, 96, 0, 1])));
    assert!(key::is_mapped(&key.address));
    assert_eq!((key.ip(), key.port()), (v4, 80));
}

proptest! {
    #[test]
    fn addresses_come_back_as_they_went_in(address: IpAddr, port: u16) {
        let key = FrontendKey::new(address, port, 6);
        prop_assert_eq!((key.ip(), key.port()), (address.to_canonical(), port));
    }
}
