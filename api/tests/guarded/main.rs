//! What lies around the services, over real sockets: who may call what, what a call may cost, and that nobody who asks for
//! too much is in anybody's way.

mod hostile;
mod limits;
mod mutated;
mod node;
mod observer;
mod pki;
mod roles;
#[path = "../sample/mod.rs"]
mod sample;
mod standard;
mod tls;
