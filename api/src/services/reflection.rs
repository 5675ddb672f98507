//! Server reflection, v1 and v1alpha: tools need no proto files. The descriptors are the proto files as they were compiled,
//! comments included.

use tonic_reflection::server::Builder;

use crate::proto::DESCRIPTORS;

/// What both versions tell about.
pub(crate) fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
