//! What another replica may send, read from bytes: for whoever looks for bytes that break a reader.

use openraft::{
    error::InstallSnapshotError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotResponse, VoteRequest, VoteResponse},
};
use serde::de::DeserializeOwned;
use xds_proto::{Message, isthmus::raft::v1::Payload};

use super::wire::{Chunk, Forward, Forwarded, PreVote, PreVoted, RaftResult, ReadIndex, TakeOver, unpack};
use crate::raft::types::TypeConfig;

/// Reads the bytes of one gRPC message of `isthmus.raft.v1` as each kind of request and answer. True if they are one.
pub fn is_frame(bytes: &[u8]) -> bool {
    let Ok(payload) = Payload::decode(bytes) else { return false };
    fn reads<T: DeserializeOwned>(payload: &Payload) -> bool {
        unpack::<T>("message", payload).is_ok()
    }
    let requests = reads::<Chunk>(&payload)
        | reads::<AppendEntriesRequest<TypeConfig>>(&payload)
        | reads::<VoteRequest<u64>>(&payload)
        | reads::<Forward>(&payload)
        | reads::<PreVote>(&payload)
        | reads::<TakeOver>(&payload);
    let answers = reads::<RaftResult<AppendEntriesResponse<u64>>>(&payload)
        | reads::<RaftResult<VoteResponse<u64>>>(&payload)
        | reads::<RaftResult<InstallSnapshotResponse<u64>, InstallSnapshotError>>(&payload)
        | reads::<Forwarded>(&payload)
        | reads::<PreVoted>(&payload)
        | reads::<ReadIndex>(&payload);
    requests | answers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(json: &str) -> Vec<u8> {
        Payload {
            json: json.as_bytes().to_vec(),
            from: 2,
            group: "g".to_owned(),
            transfer: false,
            ..Payload::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn what_replicas_send_is_recognised() {
        for json in [
            r#"{"vote":{"leader_id":{"term":3,"node_id":2},"committed":false},"last_log_id":null}"#,
            r#"{"envelopes":[],"patience_ms":1000}"#,
            r#"{"last":null}"#,
            r#"{"term":7}"#,
            r#"{"granted":true,"leader":null}"#,
        ] {
            assert!(is_frame(&frame(json)), "{json}");
        }
        assert!(!is_frame(&frame("{")) && !is_frame(b"\xff\xff"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at: usize, bit in 0u8..8) {
            is_frame(&bytes);
            let mut near = frame(r#"{"vote":{"leader_id":{"term":3,"node_id":2},"committed":false},"last_log_id":null}"#);
            let at = at % near.len();
            near[at] ^= 1 << bit;
            is_frame(&near);
            is_frame(&near[..at]);
        }
    }
}
