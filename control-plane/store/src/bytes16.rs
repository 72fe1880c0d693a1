//! 128 bits that travel as 32 hexadecimal digits.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An idempotency key, or the random bits of an envelope.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes16(pub [u8; 16]);

impl fmt::Display for Bytes16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Bytes16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Bytes16> for String {
    fn from(bytes: Bytes16) -> Self {
        bytes.to_string()
    }
}

impl TryFrom<String> for Bytes16 {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not 32 hexadecimal digits");
        // Else a sign would pass.
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(&text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_own_text_and_refuses_any_other() {
        let bytes = Bytes16(*b"0123456789abcdef");
        assert_eq!(Bytes16::try_from(bytes.to_string()), Ok(bytes));
        for bad in [
            "",
            "zz",
            "0123456789abcdef0123456789abcdeg",
            "é123456789abcdef0123456789abcde",
            "+123456789abcdef0123456789abcdef",
        ] {
            assert!(Bytes16::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
