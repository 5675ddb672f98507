//! What a connection is looked up by.

use super::fingerprint::abi_struct;

abi_struct! {
    /// A destination as a client dials it. IPv4 addresses are written as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2), so that
    /// both families share one index and an IPv6 socket that dials `::ffff:10.96.0.1` finds the IPv4 service.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FrontendKey[20] {
        /// The address: four words, each with its four bytes in network order, as the kernel hands them over.
        pub address: [u32; 4],
        /// The port in network order.
        pub port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: u8,
    }
}

/// The third word of an IPv4-mapped address (`::ffff:0:0/96`), as it lies in memory.
pub const MAPPED_WORD: u32 = 0x0000_ffff_u32.to_be();

/// An IPv4 address, given as the kernel hands it over, as an IPv4-mapped one.
#[inline(always)]
#[must_use]
pub const fn mapped(address_be: u32) -> [u32; 4] {
    [0, 0, MAPPED_WORD, address_be]
}

/// Whether an address is an IPv4-mapped one.
#[inline(always)]
#[must_use]
pub const fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED_WORD
}

/// The address as it is kept in maps.
#[must_use]
pub const fn address_words(address: core::net::IpAddr) -> [u32; 4] {
    let octets = match address {
        core::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        core::net::IpAddr::V6(address) => address.octets(),
    };
    [word(&octets, 0), word(&octets, 4), word(&octets, 8), word(&octets, 12)]
}

const fn word(octets: &[u8; 16], first: usize) -> u32 {
    u32::from_ne_bytes([octets[first], octets[first + 1], octets[first + 2], octets[first + 3]])
}

/// The address that maps keep as these words; IPv4-mapped ones come back as IPv4.
#[must_use]
pub const fn address_from_words(words: [u32; 4]) -> core::net::IpAddr {
    let mut octets = [0; 16];
    let mut index = 0;
    while index < octets.len() {
        octets[index] = words[index / 4].to_ne_bytes()[index % 4];
        index += 1;
    }
    core::net::IpAddr::V6(core::net::Ipv6Addr::from_octets(octets)).to_canonical()
}

impl FrontendKey {
    /// The same address and protocol, on every port: what leads to a service with any port.
    #[inline(always)]
    #[must_use]
    pub const fn any_port(&self) -> Self {
        Self { port_be: 0, ..*self }
    }

    /// The key of a destination.
    #[must_use]
    pub const fn new(address: core::net::IpAddr, port: u16, protocol: u8) -> Self {
        Self { address: address_words(address), port_be: port.to_be(), protocol, reserved: 0 }
    }

    /// The destination's address.
    #[must_use]
    pub const fn ip(&self) -> core::net::IpAddr {
        address_from_words(self.address)
    }

    /// The destination's port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be(self.port_be)
    }
}
