//! `START_TIME`'s format.

use std::{fmt::Write, time::SystemTime};

use time::OffsetDateTime;

/// One `%x` of a format, or text between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    Text(String),
    /// A letter of `strftime`.
    Letter(char),
    /// Digits of the second's fraction.
    Fraction(usize),
}

/// RFC 3339 with milliseconds.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";
const LETTERS: &str = "YmdHMSsFTZebajy";

/// `None`: there is a letter that is not known.
pub(super) fn parse(format: &str) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    let mut chars = if format.is_empty() { DEFAULT } else { format }.chars().peekable();
    let mut text = String::new();
    while let Some(char) = chars.next() {
        if char != '%' {
            text.push(char);
            continue;
        }
        let field = match chars.next()? {
            '%' => {
                text.push('%');
                continue;
            }
            'f' => Field::Fraction(9),
            digit @ '1'..='9' => {
                chars.next_if_eq(&'f')?;
                Field::Fraction(digit.to_digit(10)? as usize)
            }
            letter if LETTERS.contains(letter) => Field::Letter(letter),
            _ => return None,
        };
        if !text.is_empty() {
            fields.push(Field::Text(std::mem::take(&mut text)));
        }
        fields.push(field);
    }
    if !text.is_empty() {
        fields.push(Field::Text(text));
    }
    Some(fields)
}

pub(super) fn write(fields: &[Field], at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let mut text = String::with_capacity(32);
    for field in fields {
        // Writing to a string cannot fail.
        let _ = match field {
            Field::Text(literal) => text.write_str(literal),
            Field::Fraction(digits) => {
                let all = format!("{:09}", at.nanosecond());
                text.write_str(all.get(..*digits).unwrap_or(&all))
            }
            Field::Letter(letter) => letter_of(&mut text, *letter, at),
        };
    }
    text
}

fn letter_of(text: &mut String, letter: char, at: OffsetDateTime) -> std::fmt::Result {
    let month = u8::from(at.month());
    match letter {
        'Y' => write!(text, "{:04}", at.year()),
        'y' => write!(text, "{:02}", at.year().rem_euclid(100)),
        'm' => write!(text, "{month:02}"),
        'd' => write!(text, "{:02}", at.day()),
        'e' => write!(text, "{:2}", at.day()),
        'j' => write!(text, "{:03}", at.ordinal()),
        'H' => write!(text, "{:02}", at.hour()),
        'M' => write!(text, "{:02}", at.minute()),
        'S' => write!(text, "{:02}", at.second()),
        's' => write!(text, "{}", at.unix_timestamp()),
        'F' => write!(text, "{:04}-{month:02}-{:02}", at.year(), at.day()),
        'T' => write!(text, "{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second()),
        'b' => text.write_str(at.month().to_string().get(..3).unwrap_or_default()),
        'a' => text.write_str(at.weekday().to_string().get(..3).unwrap_or_default()),
        _ => text.write_str("UTC"),
    }
}
