//! Server name and application protocols in a TLS `ClientHello` (RFC 8446 4.1.2, RFC 6066 3, RFC 7301 3.1), without a TLS
//! library: nothing is decrypted here.
//!
//! The parser is total: every input has an answer, and none panics.

use std::borrow::Cow;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Too few to say.
    Incomplete,
    /// No TLS.
    NotTls,
    /// A `ClientHello`.
    Client(Wishes),
}

/// What a client asks for in its `ClientHello`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// In lower case, where there is a usable one.
    pub server_name: Option<String>,
    /// ALPN, most wanted first.
    pub protocols: Vec<String>,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const APPLICATION_PROTOCOLS: u16 = 16;
const HOST_NAME: u8 = 0;
/// Largest record (RFC 8446 5.1).
const MAX_RECORD: usize = 1 << 14;
/// Largest host name in DNS.
const MAX_NAME: usize = 255;
/// Protocols that are looked at; a client offers a handful.
const MAX_PROTOCOLS: usize = 32;

/// Reads the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Hello {
    let message = match handshake(bytes) {
        Ok(Some(message)) => message,
        Ok(None) => return Hello::Incomplete,
        Err(NotTls) => return Hello::NotTls,
    };
    // A malformed hello is still TLS: whoever terminates it is to say what is wrong with it.
    Hello::Client(wishes(&message))
}

struct NotTls;

/// The body of the `ClientHello`, put together from records.
fn handshake(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, NotTls> {
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        // Each byte is checked as soon as it is there: a client that speaks first in plain text is known at once.
        match rest {
            [kind, ..] if *kind != HANDSHAKE => return Err(NotTls),
            [_, major, ..] if *major != 3 => return Err(NotTls),
            [_, _, _, high, low, body @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > MAX_RECORD {
                    return Err(NotTls);
                }
                let part = body.get(..length).unwrap_or(body);
                if message.is_empty() {
                    message = Cow::Borrowed(part);
                } else {
                    message.to_mut().extend_from_slice(part);
                }
                if let Some(kind) = message.first()
                    && *kind != CLIENT_HELLO
                {
                    return Err(NotTls);
                }
                if let [_, a, b, c, after @ ..] = message.as_ref() {
                    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                    if after.len() >= length {
                        return Ok(Some(match message {
                            Cow::Borrowed(all) => Cow::Borrowed(all.get(4..4 + length).unwrap_or_default()),
                            Cow::Owned(all) => {
                                Cow::Owned(all.get(4..4 + length).unwrap_or_default().to_vec())
                            }
                        }));
                    }
                }
                match body.get(length..) {
                    Some(next) => rest = next,
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        }
    }
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn short(&mut self) -> Option<u16> {
        match self.take(2)? {
            [high, low] => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }

    fn prefixed8(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    fn prefixed16(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(length.into())
    }
}

fn wishes(body: &[u8]) -> Wishes {
    let mut wishes = Wishes::default();
    // What is malformed ends the search; what was found before holds.
    let _ = read(body, &mut wishes);
    wishes
}

fn read(body: &[u8], wishes: &mut Wishes) -> Option<()> {
    let mut hello = Reader(body);
    // legacy_version, random
    hello.take(2 + 32)?;
    // legacy_session_id, cipher_suites, legacy_compression_methods
    hello.prefixed8()?;
    hello.prefixed16()?;
    hello.prefixed8()?;
    let mut extensions = Reader(hello.prefixed16()?);
    // The first of a kind counts.
    let (mut named, mut offered) = (false, false);
    while let Some(kind) = extensions.short() {
        let data = extensions.prefixed16()?;
        match kind {
            SERVER_NAME if !named => {
                named = true;
                wishes.server_name = server_name(data);
            }
            APPLICATION_PROTOCOLS if !offered => {
                offered = true;
                wishes.protocols = protocols(data);
            }
            _ => {}
        }
    }
    Some(())
}

fn server_name(data: &[u8]) -> Option<String> {
    let mut names = Reader(Reader(data).prefixed16()?);
    while let Some(kind) = names.byte() {
        let name = names.prefixed16()?;
        if kind == HOST_NAME {
            return host(name);
        }
    }
    None
}

fn protocols(data: &[u8]) -> Vec<String> {
    let mut list = Reader(Reader(data).prefixed16().unwrap_or_default());
    let each = std::iter::from_fn(|| list.prefixed8());
    let text = |name: &[u8]| std::str::from_utf8(name).ok().map(str::to_owned);
    each.take(MAX_PROTOCOLS).filter_map(text).collect()
}

fn host(name: &[u8]) -> Option<String> {
    let usable = !name.is_empty() && name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic);
    let text = usable.then(|| std::str::from_utf8(name).ok())??;
    Some(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConnection, RootCertStore};

    use super::*;

    /// What rustls really sends.
    fn hello(name: &str) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(mesh_tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut client =
            ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = vec![];
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of `size` bytes.
    fn fragmented(bytes: &[u8], size: usize) -> Vec<u8> {
        let body = &bytes[5..];
        let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        body.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn the_name_of_a_real_hello_is_found_however_it_is_cut() {
        let whole = hello("8080.Pay.shop.svc.mesh.local");
        let expected = Hello::Client(Wishes {
            server_name: Some("8080.pay.shop.svc.mesh.local".to_owned()),
            protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
        });
        assert_eq!(parse(&whole), expected);
        for size in [1, 7, 100] {
            assert_eq!(parse(&fragmented(&whole, size)), expected);
        }
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Hello::Incomplete, "{length}");
        }
    }

    #[test]
    fn a_hello_to_an_address_has_no_name() {
        let Hello::Client(wishes) = parse(&hello("127.0.0.1")) else { panic!("it is a hello") };
        assert_eq!(wishes.server_name, None);
    }

    #[test]
    fn plain_text_is_known_by_its_first_byte() {
        for text in [&b"GET / HTTP/1.1"[..], b"PRI", b"\x80\x2e\x01", b"\x16\x02", b"\x16\x03\x01\x00\x00"] {
            assert_eq!(parse(text), Hello::NotTls);
        }
        assert_eq!(parse(b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"), Hello::NotTls, "a ServerHello");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
            let framed = [&[22, 3, 1][..], &(bytes.len() as u16).to_be_bytes(), &bytes].concat();
            parse(&framed);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..400, value: u8, cut in 0_usize..400) {
            let mut bytes = hello("pay.shop");
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len().saturating_sub(cut));
            parse(&bytes);
            wishes(&bytes);
        }
    }
}
