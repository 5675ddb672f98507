//! Network namespaces whose processes are managed.

use std::path::PathBuf;

use tonic::{Code, Status as RpcStatus};

use crate::convert::Path;
use crate::proto;
use crate::rejection::{Rejection, Violation, Violations};

/// A network namespace, as the agent finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// A file that stands for it.
    Path(PathBuf),
    /// That of a process.
    Process(u32),
}

impl Namespace {
    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Process(process) => format!("/proc/{process}/ns/net").into(),
        }
    }

    pub(crate) fn encode(&self) -> proto::NamespaceName {
        let name = match self {
            Self::Path(path) => proto::namespace_name::Name::Path(path.to_string_lossy().into_owned()),
            Self::Process(process) => proto::namespace_name::Name::Process(*process),
        };
        proto::NamespaceName { name: Some(name) }
    }
}

/// Why what was asked of a namespace was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// The agent does not manage by namespace.
    #[error("{0}")]
    NotByNamespace(&'static str),
    /// What was named is no network namespace that the agent can enter.
    #[error("{0}")]
    Unusable(String),
    /// There is no room for more.
    #[error("{0}")]
    Full(String),
    /// The kernel refuses.
    #[error("{0}")]
    Failed(String),
}

impl NamespaceError {
    pub(crate) fn to_status(&self) -> RpcStatus {
        let code = match self {
            Self::NotByNamespace(_) => Code::FailedPrecondition,
            Self::Unusable(_) => Code::InvalidArgument,
            Self::Full(_) => Code::ResourceExhausted,
            Self::Failed(_) => Code::Internal,
        };
        RpcStatus::new(code, self.to_string())
    }
}

pub(crate) fn decode_namespace(message: Option<proto::NamespaceName>) -> Result<Namespace, RpcStatus> {
    use proto::namespace_name::Name;
    let refused = |path: &Path<'_>, description: &str| {
        let violation = Violation { path: path.to_string(), resource: None, description: description.to_owned() };
        let mut found = Violations::default();
        found.push(violation);
        Err(Rejection::invalid(found).to_status())
    };
    let root = Path::root("namespace");
    match message.and_then(|message| message.name) {
        None => refused(&root, "is required"),
        Some(Name::Path(path)) if !path.starts_with('/') => {
            refused(&root.field("path"), "must be an absolute path, as in /run/netns/blue")
        }
        Some(Name::Path(path)) => Ok(Namespace::Path(path.into())),
        Some(Name::Process(0)) => refused(&root.field("process"), "must be a process's number"),
        Some(Name::Process(process)) => Ok(Namespace::Process(process)),
    }
}
