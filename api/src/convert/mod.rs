//! Between messages of `holdfast.v1` and `storage-schema`.
//!
//! Encoding cannot fail. Decoding refuses what has no meaning (a missing oneof, a kind that does not exist, an address
//! that is none, port 0) and what is out of bounds; it reports every field that is wrong, each with its path as the
//! proto spells it (`transaction.deltas[2].upsert.service.ports[0].port`), up to a bound. It does not ask whether what
//! is said fits the state: that is the backend's to decide.

mod balancing;
mod resource;
mod transaction;

use std::fmt;

pub(crate) use balancing::encode_drain_mode;
pub use resource::{decode_key, decode_kind, decode_resource, encode_key, encode_kind, encode_resource};
pub(crate) use transaction::{decode_deltas, decode_preconditions, decode_source, encode_delta, encode_preconditions};
pub use transaction::{decode_transaction, encode_transaction};

use crate::TEXT_BYTES_MAX;
use crate::rejection::{Violation, Violations};

/// Where in a message a value stands. A chain of borrowed segments: it is only written out when something is wrong.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment,
}

#[derive(Clone, Copy)]
enum Segment {
    Field(&'static str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// A field of the request itself.
    pub const fn root(name: &'static str) -> Self {
        Self { parent: None, segment: Segment::Field(name) }
    }

    /// A field of the message that stands here.
    #[must_use]
    pub const fn field(&'a self, name: &'static str) -> Self {
        Self { parent: Some(self), segment: Segment::Field(name) }
    }

    /// An element of the list that stands here.
    #[must_use]
    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), segment: Segment::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Field(name) if self.parent.is_none() => f.write_str(name),
            Segment::Field(name) => write!(f, ".{name}"),
            Segment::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Collects what is wrong while a message is decoded. Every method returns `None` after having noted why.
impl Violations {
    pub(crate) fn note<T>(&mut self, path: &Path<'_>, description: impl Into<String>) -> Option<T> {
        self.say(path, description);
        None
    }

    /// Notes something of which nothing else depends.
    pub(crate) fn say(&mut self, path: &Path<'_>, description: impl Into<String>) {
        self.push(Violation { path: path.to_string(), resource: None, description: description.into() });
    }

    pub(crate) fn text(&mut self, path: &Path<'_>, text: String) -> Option<String> {
        if text.len() > TEXT_BYTES_MAX {
            return self.note(path, format!("{} bytes are too long: at most {TEXT_BYTES_MAX}", text.len()));
        }
        if let Some(control) = text.chars().find(|c| c.is_control()) {
            return self.note(path, format!("must not contain control characters (found {control:?})"));
        }
        Some(text)
    }

    fn required_text(&mut self, path: &Path<'_>, text: String) -> Option<String> {
        if text.is_empty() {
            return self.note(path, "is required");
        }
        self.text(path, text)
    }

    fn port(&mut self, path: &Path<'_>, port: u32) -> Option<u16> {
        match u16::try_from(port) {
            Ok(port) if port != 0 => Some(port),
            _ => self.note(path, format!("must be 1 to 65535, not {port}")),
        }
    }

    fn list<M, T>(
        &mut self,
        path: &Path<'_>,
        messages: Vec<M>,
        mut decode: impl FnMut(&Path<'_>, M, &mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let decoded: Vec<Option<T>> =
            messages.into_iter().enumerate().map(|(i, message)| decode(&path.index(i), message, self)).collect();
        decoded.into_iter().collect()
    }
}
