//! Secrets sealed to one reader: HPKE (RFC 9180), so that what is replicated can be read with the key of one
//! replica's disk and with nothing else.

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};

use crate::Error;

/// Separates these from anything else that is ever sealed to the same keys.
const INFO: &[u8] = b"isthmus sealed secret v1";
/// Bytes of an X25519 key, public or private.
const KEY_BYTES: usize = 32;
/// Largest ciphertext that is opened. A sealed P-256 key has about 160 bytes.
const MAX_SEALED: usize = 16 * 1024;

/// A secret that only the holder of one [`SealingKey`] can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The sender's half of the key agreement.
    pub encapsulated: Vec<u8>,
    /// AES-256-GCM.
    pub ciphertext: Vec<u8>,
}

/// The private half is for this process and its disk alone.
pub struct SealingKey {
    public: Vec<u8>,
    private: HpkePrivateKey,
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKey").finish_non_exhaustive()
    }
}

impl SealingKey {
    /// A new key.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, Error> {
        let (public, private) = SUITE.generate_key_pair().map_err(|e| Error::Key(e.to_string()))?;
        Ok(Self { public: public.0, private })
    }

    /// What others seal to.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Both halves in hexadecimal, a line each. For a file that only its owner reads.
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n", hex(&self.public), hex(self.private.secret_bytes()))
    }

    /// Reads what [`SealingKey::to_text`] wrote.
    ///
    /// # Errors
    /// The text is something else, or its halves are not of one key.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let mut lines = text.lines().map(unhex);
        let (Some(Some(public)), Some(Some(private)), None) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(Error::Key("the text is not two lines of 64 hexadecimal digits".to_owned()));
        };
        let key = Self { public, private: private.into() };
        let probe = seal(&key.public, b"probe", b"probe")?;
        key.open(&probe, b"probe").map_err(|_| Error::Key("its halves are not of one key".to_owned()))?;
        Ok(key)
    }

    /// Opens what was sealed to this key for the same purpose.
    ///
    /// # Errors
    /// It was sealed to another key or for another purpose, or is damaged.
    pub fn open(&self, sealed: &Sealed, purpose: &[u8]) -> Result<Vec<u8>, Error> {
        if sealed.ciphertext.len() > MAX_SEALED || sealed.encapsulated.len() != KEY_BYTES {
            return Err(Error::Key("the sealed secret has a wrong size".to_owned()));
        }
        SUITE
            .open(
                &EncapsulatedSecret(sealed.encapsulated.clone()),
                INFO,
                purpose,
                &sealed.ciphertext,
                &self.private,
            )
            .map_err(|_| Error::Key("the secret is not sealed to this key, or is damaged".to_owned()))
    }
}

/// Seals a secret to a public key. `purpose` must be named again to open it.
///
/// # Errors
/// The key is unusable.
pub fn seal(public: &[u8], purpose: &[u8], secret: &[u8]) -> Result<Sealed, Error> {
    if public.len() != KEY_BYTES {
        return Err(Error::Key(format!("a sealing key has {KEY_BYTES} bytes, this has {}", public.len())));
    }
    let (encapsulated, ciphertext) = SUITE
        .seal(INFO, purpose, secret, &HpkePublicKey(public.to_vec()))
        .map_err(|e| Error::Key(e.to_string()))?;
    Ok(Sealed { encapsulated: encapsulated.0, ciphertext })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(line: &str) -> Option<Vec<u8>> {
    if line.len() != 2 * KEY_BYTES || !line.is_ascii() {
        return None;
    }
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reader_opens_and_only_for_the_purpose() {
        let (reader, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
        let sealed = seal(reader.public(), b"root 1", b"secret").unwrap();
        assert_eq!(reader.open(&sealed, b"root 1").unwrap(), b"secret");
        assert!(reader.open(&sealed, b"root 2").is_err());
        assert!(other.open(&sealed, b"root 1").is_err());
        let mut damaged = sealed.clone();
        damaged.ciphertext[0] ^= 1;
        assert!(reader.open(&damaged, b"root 1").is_err());
        let cut = Sealed { encapsulated: vec![1; 5], ..sealed };
        assert!(reader.open(&cut, b"root 1").is_err());
        assert!(seal(&[0; 31], b"", b"").is_err());
    }

    #[test]
    fn a_key_survives_its_text_and_refuses_a_mixed_one() {
        let (key, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
        let again = SealingKey::from_text(&key.to_text()).unwrap();
        let sealed = seal(key.public(), b"p", b"secret").unwrap();
        assert_eq!(again.open(&sealed, b"p").unwrap(), b"secret");
        let mixed = format!("{}\n{}\n", hex(&key.public), hex(other.private.secret_bytes()));
        for bad in ["", "zz\nzz\n", mixed.as_str()] {
            assert!(SealingKey::from_text(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{key:?}"), "SealingKey { .. }");
    }
}
