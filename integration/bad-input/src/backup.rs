//! Files that hold a state: backups, and the snapshots of a replica's disk.

use std::io::Write;

use mesh_store::{
    backup,
    container::{Kind, Reader, Writer},
};

/// Where a restored replica would be, and when: nothing of it is from the file.
const ADDRESS: &str = "192.0.2.1:9443";
const NOW: u64 = 1_800_000_000;

pub(crate) fn backup(bytes: &[u8]) {
    read(bytes);
    // Checksums keep a fuzzer out of what they protect. So the same bytes again, as header and content of a file that
    // is whole: two bytes say how long the header is.
    let Some(([low, high], rest)) = bytes.split_first_chunk().map(|(first, rest)| (*first, rest)) else {
        return;
    };
    let (header, content) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
    let snapshot = Kind { magic: *b"isthsnap", name: "snapshot" };
    for kind in [backup::KIND, snapshot] {
        let file = file(kind, header, content);
        let (reader, found) = Reader::open(&file[..], kind).expect("what was just written has a header");
        assert_eq!(found, header);
        assert_eq!(reader.rest(content.len() as u64).expect("and is whole"), content);
        read(&file);
    }
}

/// What is read is written and read again, and can be restored.
fn read(file: &[u8]) {
    let _ = control_plane::raft::is_snapshot(file);
    let Ok((header, state)) = backup::read(file) else { return };
    let written = backup::write(&state, header.created_unix, &header.release, Vec::new());
    let again = backup::read(&written.expect("what was read has a form as bytes")[..]);
    assert_eq!(again.expect("what it writes is a backup"), (header.clone(), state.clone()));
    let (restored, id) = backup::restored(state, &header, ADDRESS, NOW);
    assert!(restored.revision >= header.revision && restored.replicas.contains_key(&id));
}

fn file(kind: Kind, header: &[u8], content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), kind, header).expect("a header of two bytes' length");
    writer.write_all(content).expect("memory");
    writer.finish().expect("memory").0
}
