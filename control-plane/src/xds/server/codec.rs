//! Responses on their way out: framed into a buffer of their own from the resources that all streams share. What most
//! responses consist of is written without being built first; whatever is rare goes by prost.
//!
//! tonic's encoder would do, but for its buffer: it belongs to the stream and keeps the room of the largest response,
//! so that a stream that is idle ever after costs as much as what it was sent first.

use std::{
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::Frame as BodyFrame;
use prost::{
    Message,
    bytes::{BufMut, Bytes, BytesMut},
    encode_length_delimiter, length_delimiter_len,
};
use tokio::sync::mpsc;
use tonic::{Status, codegen::http::HeaderMap};
use xds_proto::google::protobuf::Any;

use super::wire::Wire;
use crate::xds::{
    Encoded,
    session::{Response, mark},
};

/// Most that keys and lengths add to a resource, and the rest to a response without removals. Only a buffer's size.
const FRAMING: usize = 256;
/// gRPC's frame: a flag for compression and four bytes of length.
const HEADER: usize = 5;

/// A response, and who sends it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) response: Response,
    pub(super) control_plane: Arc<str>,
}

/// Where a stream puts its responses. In boxes, because the channel has room for more than it ever holds.
pub(super) type Responses = mpsc::Receiver<Result<Box<Frame>, Status>>;

/// The body of the answer to one call.
pub(super) struct Outgoing<W> {
    responses: Responses,
    ended: bool,
    wire: PhantomData<fn() -> W>,
}

impl<W> Outgoing<W> {
    pub(super) fn new(responses: Responses) -> Self {
        Self { responses, ended: false, wire: PhantomData }
    }
}

impl<W: Wire> http_body::Body for Outgoing<W> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.responses.poll_recv(cx)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(BodyFrame::data(framed::<W>(*frame))))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| BodyFrame::trailers(trailers))))
    }
}

fn framed<W: Wire>(Frame { response, control_plane }: Frame) -> Bytes {
    let content: usize = response.resources.iter().map(|resource| resource.wire_size() + FRAMING).sum();
    let mut buffer = BytesMut::with_capacity(content + FRAMING);
    buffer.put_bytes(0, HEADER);
    W::encode(response, &control_plane, &mut buffer);
    // A response of 4 GiB would need as many resources; the client refuses the frame.
    let length = u32::try_from(buffer.len() - HEADER).unwrap_or(u32::MAX);
    buffer[1..HEADER].copy_from_slice(&length.to_be_bytes());
    buffer.freeze()
}

/// An incremental response: `DeltaDiscoveryResponse`.
pub(super) fn delta(response: Response, control_plane: &str, buffer: &mut impl BufMut) {
    if !is_plain(&response) || !response.unresolved.is_empty() || !response.aliases.is_empty() {
        return whole(&response.into_delta(control_plane), buffer);
    }
    text(1, &response.revision.to_string(), buffer);
    let mark = mark(response.revision);
    for resource in &response.resources {
        let any = any_len(&resource.any);
        let version = resource.version.len() + mark.len();
        let length = message_len(version) + message_len(any) + field_len(resource.name.len());
        head(2, length, buffer);
        head(1, version, buffer);
        buffer.put_slice(resource.version.as_bytes());
        buffer.put_slice(mark.as_bytes());
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
