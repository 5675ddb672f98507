//! How messages are read: as prost does, but a request that would take more memory than its client has room for is refused
//! before it is decoded.

use std::marker::PhantomData;

use prost::bytes::Buf as _;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::request::{grow_room, room_max};
use super::weight;

/// The codec of every service and client of `holdfast.v1`.
#[derive(Clone, Copy, Debug)]
pub struct WeighingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WeighingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for WeighingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = WeighingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        WeighingDecoder(PhantomData)
    }
}

/// Its decoder.
#[derive(Clone, Copy, Debug)]
pub struct WeighingDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for WeighingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // What the server itself says to a client is taken as it is.
        if U::NAME.ends_with("Request") {
            let weight = weight::of(&U::full_name(), buffer.chunk(), room_max()).unwrap_or(usize::MAX);
            grow_room(weight)?;
        }
        U::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("the message is malformed: {error}")))
    }
}
