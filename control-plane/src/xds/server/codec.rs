//! Responses on their way out: framed straight into the transport's buffer from the resources that all streams share.
//! What most responses consist of is written without being built first; whatever is rare goes by prost.

use std::{marker::PhantomData, sync::Arc};

use prost::{Message, bytes::BufMut, encode_length_delimiter, length_delimiter_len};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};
use xds_proto::google::protobuf::Any;

use super::wire::Wire;
use crate::xds::{Encoded, session::Response};

/// What a stream keeps for reading and for writing while nothing happens. tonic's own 8 KiB, twice, would be a third of
/// what an idle stream costs; larger messages get larger buffers for as long as they last.
const BUFFER_BYTES: usize = 1 << 10;
/// From here on what was encoded goes to the transport before more is: tonic's default.
const YIELD_BYTES: usize = 32 << 10;

/// A response, and who sends it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) response: Response,
    pub(super) control_plane: Arc<str>,
}

/// Of one protocol.
pub(super) struct FrameCodec<W>(PhantomData<fn() -> W>);

pub(super) struct FrameEncoder<W>(PhantomData<fn() -> W>);

impl<W> Default for FrameCodec<W> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

impl<W: Wire> Codec for FrameCodec<W> {
    /// In a box, because the channel between a stream and its transport has room for more than it ever holds.
    type Encode = Box<Frame>;
    type Decode = W::Request;
    type Encoder = FrameEncoder<W>;
    type Decoder = ProstDecoder<W::Request>;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<W::Request, W::Request>::raw_decoder(buffers())
    }
}

impl<W: Wire> Encoder for FrameEncoder<W> {
    type Item = Box<Frame>;
    type Error = Status;

    fn encode(&mut self, frame: Box<Frame>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let Frame { response, control_plane } = *frame;
        let content: usize = response.resources.iter().map(|resource| resource.wire_size() + FRAMING).sum();
        buffer.reserve(content + FRAMING);
        W::encode(response, &control_plane, buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

/// Most that keys and lengths add to a resource, and the rest to a response without removals. Only a buffer's size.
const FRAMING: usize = 256;

/// An incremental response: `DeltaDiscoveryResponse`.
pub(super) fn delta(response: Response, control_plane: &str, buffer: &mut impl BufMut) {
    if !is_plain(&response) || !response.unresolved.is_empty() || !response.aliases.is_empty() {
        return whole(&response.into_delta(control_plane), buffer);
    }
    text(1, &response.revision.to_string(), buffer);
    for resource in &response.resources {
        let any = any_len(&resource.any);
        let length = field_len(resource.version.len()) + message_len(any) + field_len(resource.name.len());
        head(2, length, buffer);
        text(1, &resource.version, buffer);
        put_any(2, &resource.any, buffer);
        text(3, &resource.name, buffer);
    }
    text(4, &response.type_url, buffer);
    text(5, &response.nonce, buffer);
    for name in &response.removed {
        // An element of a list is there though it is empty.
        head(6, name.len(), buffer);
        buffer.put_slice(name.as_bytes());
    }
    head(7, field_len(control_plane.len()), buffer);
    text(1, control_plane, buffer);
}

/// A state-of-the-world response: `DiscoveryResponse`.
pub(super) fn sotw(response: Response, control_plane: &str, buffer: &mut impl BufMut) {
    if !is_plain(&response) {
        return whole(&response.into_sotw(control_plane), buffer);
    }
    text(1, &response.revision.to_string(), buffer);
    response.resources.iter().for_each(|resource| put_any(2, &resource.any, buffer));
    text(4, &response.type_url, buffer);
    text(5, &response.nonce, buffer);
    head(6, field_len(control_plane.len()), buffer);
    text(1, control_plane, buffer);
}

fn is_plain(response: &Response) -> bool {
    let lasts = |resource: &Arc<Encoded>| resource.ttl.is_none();
    response.prolonged.is_empty() && response.errors.is_empty() && response.resources.iter().all(lasts)
}

fn whole(message: &impl Message, buffer: &mut impl BufMut) {
    message.encode_raw(buffer);
}

/// A string, or nothing if it is empty.
fn text(tag: u8, text: &str, buffer: &mut impl BufMut) {
    if !text.is_empty() {
        head(tag, text.len(), buffer);
        buffer.put_slice(text.as_bytes());
    }
}

fn put_any(tag: u8, any: &Any, buffer: &mut impl BufMut) {
    head(tag, any_len(any), buffer);
    text(1, &any.type_url, buffer);
    if !any.value.is_empty() {
        head(2, any.value.len(), buffer);
        buffer.put_slice(&any.value);
    }
}

/// The key of a field of bytes, and how many. Tags below 16 take one byte.
fn head(tag: u8, length: usize, buffer: &mut impl BufMut) {
    const BYTES: u8 = 2;
    buffer.put_u8(tag << 3 | BYTES);
    // A buffer that grows has room.
    let _ = encode_length_delimiter(length, buffer);
}

/// Bytes of a field that is left out when it is empty.
fn field_len(length: usize) -> usize {
    if length == 0 { 0 } else { message_len(length) }
}

/// Bytes of a field that is there in any case.
fn message_len(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

fn any_len(any: &Any) -> usize {
    field_len(any.type_url.len()) + field_len(any.value.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::time::Duration;

    fn resource(name: &str, value: usize, ttl: bool) -> Arc<Encoded> {
        let any = Any { type_url: "t".repeat(value % 70), value: vec![7; value] };
        let encoded = Encoded::from_any(name, any);
        Arc::new(if ttl { encoded.with_ttl(Duration::from_secs(9)) } else { encoded })
    }

    proptest! {
        #[test]
        fn what_is_written_by_hand_is_what_prost_writes(
            revision in any::<u64>(),
            resources in proptest::collection::vec(("[a-z/]{0,9}", 0_usize..400, prop::bool::weighted(0.1)), 0..4),
            removed in proptest::collection::vec("[a-z]{0,300}", 0..3),
            rare in prop::option::weighted(0.3, 0_u8..4),
            (type_url, nonce, control_plane) in ("[a-z.]{0,20}", "[0-9a-f-]{0,9}", "[a-z-]{0,9}"),
        ) {
            let mut response = Response {
                type_url: type_url.as_str().into(),
                nonce,
                revision,
                resources: resources.iter().map(|(name, size, ttl)| resource(name, *size, *ttl)).collect(),
                removed: removed.iter().map(|name| name.as_str().into()).collect(),
                ..Response::default()
            };
            match rare {
                Some(0) => response.unresolved.push("u".into()),
                Some(1) => response.errors.push(("e".into(), "why".to_owned())),
                Some(2) => response.prolonged.push(resource("p", 3, true)),
                Some(_) => response.aliases.push(("a".into(), "b".into())),
                None => {}
            }
            let mut written = Vec::new();
            delta(response.clone(), &control_plane, &mut written);
            prop_assert_eq!(written, response.clone().into_delta(&control_plane).encode_to_vec());
            let mut written = Vec::new();
            sotw(response.clone(), &control_plane, &mut written);
            prop_assert_eq!(written, response.into_sotw(&control_plane).encode_to_vec());
        }
    }
}
