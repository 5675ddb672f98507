//! Who may call: the other end of each connection is known before its first request, and each request is held against
//! one table of what its method needs.
//!
//! * At the unix socket the kernel says who is there (`SO_PEERCRED`). Root and the agent's own user may do everything;
//!   others need a [`Rule`].
//! * Over TCP both ends show certificates ([`tls`]); the names in the client's are held against the rules. Without TLS the
//!   agent listens on loopback addresses only, and only if told so; whoever connects there may do everything.
//!
//! A connection that nobody vouches for is kept, within its limits, so that its calls can be answered with
//! `PERMISSION_DENIED` and the reason instead of a broken connection.

mod accept;
mod method;
mod peer;
mod rule;
pub mod tls;

pub(crate) use self::accept::{Gate, incoming};
pub use self::accept::{Listeners, Security, Tcp, TcpError};
pub(crate) use self::method::find;
pub use self::method::{METHODS, Method, Need, Shape};
pub use self::peer::{Caller, Origin, Peer, check_source};
pub use self::rule::{Role, Rule, RuleError, Sources, Who};
