//! The services that every gRPC tool knows (health, reflection), and what the server says about itself.

pub(crate) mod capabilities;
pub(crate) mod health;
pub(crate) mod reflection;
