//! Regular expressions that Envoy takes as well. Its engine is RE2, whose syntax Rust's `regex` shares but for some
//! constructs; what RE2 would refuse, or read otherwise, is refused when it is applied, not when it is pushed.
//!
//! Source: RE2's `parse.cc` and `doc/syntax.txt`. Envoy's RE2 reads bytes as Latin-1: of more than ASCII the two would not
//! see the same characters.

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassSetItem, ClassUnicode, ClassUnicodeKind, FlagsItemKind, GroupKind,
    HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionRange, Visitor,
};

/// RE2's `kMaxRepeat`: the most that `x{n}` may ask for, alone and multiplied with those that it stands in.
const MAX_REPEAT: u32 = 1000;
/// General categories of Unicode of two letters; those of one letter are a kind of their own.
const CATEGORIES: [&str; 29] = [
    "Cc", "Cf", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu", "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc", "Pd",
    "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs",
];

/// What RE2 has against an expression that Rust's `regex` takes.
///
/// # Errors
/// One part of a sentence, for after "it".
pub(super) fn check(text: &str, nesting: u32) -> Result<(), String> {
    let parsed = ast::parse::ParserBuilder::new().nest_limit(nesting).build().parse(text);
    let parsed = parsed.map_err(|error| error.kind().to_string())?;
    ast::visit(&parsed, Check { text, allowed: vec![MAX_REPEAT] })
}

struct Check<'a> {
    text: &'a str,
    /// How often what stands here may be repeated yet; one for each repetition that it stands in.
    allowed: Vec<u32>,
}

impl Check<'_> {
    fn repetition(&mut self, repetition: &ast::Repetition) -> Result<(), String> {
        if matches!(*repetition.ast, Ast::Repetition(_)) {
            return Err("repeats a repetition: put the inner one in parentheses".to_owned());
        }
        let mut left = self.allowed.last().copied().unwrap_or(MAX_REPEAT);
        if let RepetitionKind::Range(range) = &repetition.op.kind {
            let span = &repetition.op.span;
            let written = self.text.get(span.start.offset..span.end.offset).unwrap_or_default();
            if !is_re2_range(written) {
                return Err(format!("has {written}, which is no repetition in RE2"));
            }
            let (least, most) = match *range {
                RepetitionRange::Exactly(n) | RepetitionRange::AtLeast(n) => (n, n),
                RepetitionRange::Bounded(least, most) => (least, most),
            };
            if least.max(most) > MAX_REPEAT {
                return Err(format!("repeats more than {MAX_REPEAT} times"));
            }
            left /= most.max(1);
            if left == 0 {
                return Err(format!(
                    "repeats more than {MAX_REPEAT} times, its nested repetitions multiplied"
                ));
            }
        }
        self.allowed.push(left);
        Ok(())
    }
}

impl Visitor for Check<'_> {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        match ast {
            Ast::Repetition(repetition) => self.repetition(repetition),
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(set) => flags(set),
                GroupKind::CaptureIndex(_) | GroupKind::CaptureName { .. } => Ok(()),
            },
            Ast::Literal(one) => literal(one),
            Ast::ClassUnicode(class) => unicode(class),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(()),
                AssertionKind::WordBoundaryStart
                | AssertionKind::WordBoundaryEnd
                | AssertionKind::WordBoundaryStartAngle
                | AssertionKind::WordBoundaryEndAngle
                | AssertionKind::WordBoundaryStartHalf
                | AssertionKind::WordBoundaryEndHalf => {
                    Err("tells the start of a word from its end, which RE2 does not: use \\b".to_owned())
                }
            },
            Ast::Empty(_)
            | Ast::Dot(_)
            | Ast::ClassPerl(_)
            | Ast::ClassBracketed(_)
            | Ast::Alternation(_)
            | Ast::Concat(_) => Ok(()),
        }
    }

    fn visit_post(&mut self, ast: &Ast) -> Result<(), String> {
        if matches!(ast, Ast::Repetition(_)) {
            self.allowed.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), String> {
        match item {
            ClassSetItem::Literal(one) => literal(one),
            ClassSetItem::Range(range) => literal(&range.start).and_then(|()| literal(&range.end)),
            ClassSetItem::Unicode(class) => unicode(class),
            ClassSetItem::Bracketed(_) => {
                Err("has a class within a class, or a '[' in one that is not written '\\['".to_owned())
            }
            ClassSetItem::Empty(_)
            | ClassSetItem::Ascii(_)
            | ClassSetItem::Perl(_)
            | ClassSetItem::Union(_) => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), String> {
        Err("combines classes by &&, -- or ~~, which RE2 reads as characters".to_owned())
    }
}

/// `{n}`, `{n,}` or `{n,m}`, perhaps with a `?`: no blanks, no number that begins with a zero, none left out.
fn is_re2_range(written: &str) -> bool {
    let number = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'))
    };
    let inner = written.trim_end_matches('?').strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match inner.map(|inner| inner.split_once(',').unwrap_or((inner, ""))) {
        Some((least, most)) => number(least) && (most.is_empty() || number(most)),
        None => false,
    }
}

fn flags(set: &ast::Flags) -> Result<(), String> {
    let unknown = |item: &ast::FlagsItem| match &item.kind {
        FlagsItemKind::Negation => false,
        FlagsItemKind::Flag(flag) => {
            matches!(flag, ast::Flag::Unicode | ast::Flag::CRLF | ast::Flag::IgnoreWhitespace)
        }
    };
    match set.items.iter().any(unknown) {
        true => Err("has a flag that RE2 does not know: use i, m, s or U".to_owned()),
        false => Ok(()),
    }
}

fn literal(literal: &Literal) -> Result<(), String> {
    if !literal.c.is_ascii() {
        return Err(format!("has {:?}, which is not ASCII: percent-encode it", literal.c));
    }
    let known = match &literal.kind {
        LiteralKind::HexFixed(kind) | LiteralKind::HexBrace(kind) => *kind == HexLiteralKind::X,
        LiteralKind::Verbatim
        | LiteralKind::Meta
        | LiteralKind::Superfluous
        | LiteralKind::Octal
        | LiteralKind::Special(_) => true,
    };
    if known {
        return Ok(());
    }
    Err(format!("has an escape of {:?} that RE2 does not know: use \\x.. or the character", literal.c))
}

fn unicode(class: &ClassUnicode) -> Result<(), String> {
    let known = match &class.kind {
        ClassUnicodeKind::OneLetter(_) => true,
        ClassUnicodeKind::Named(name) => CATEGORIES.contains(&name.as_str()),
        ClassUnicodeKind::NamedValue { .. } => false,
    };
    if known {
        Ok(())
    } else {
        Err("has a Unicode class that is no general category, such as \\p{Lu}".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What RE2 takes. Each was shown to Envoy 1.40 (`--mode validate`), and so was each of the bad ones: it refuses
    /// it, or takes it for something else.
    const GOOD: &[&str] = &[
        "/v[0-9]+/.*",
        "/x{1000}",
        "/x{0,1000}?",
        "/x{2,}",
        "(a{10}){100}",
        "(?:a{30}b{30}){33}",
        "(a*)*",
        "a{0}",
        "(?i)abc",
        "(?s-m:a.b)",
        "(?U)a+",
        "[[:alpha:]_]",
        "[a\\]\\[]",
        "\\p{Lu}\\pL\\PN",
        "\\x41\\x{7e}\\_",
        "\\bword\\B",
        "\\A/x\\z",
        "a|b|",
        "(?P<name>a)",
        "(?<name>a)",
        "\\d\\s\\w\\D",
        "[^/]+",
        "\\/\\-\\.",
    ];
    const BAD: &[(&str, &str)] = &[
        ("/x{1001}", "more than 1000"),
        ("/x{0,1001}", "more than 1000"),
        ("/x{1001,}", "more than 1000"),
        ("(x{10}){101}", "multiplied"),
        ("((x{10}){10}){11}", "multiplied"),
        ("(?:x{34}|y){30}", "multiplied"),
        ("(x{500,}y){3}", "multiplied"),
        ("a**", "repeats a repetition"),
        ("a{2}{3}", "repeats a repetition"),
        ("a{ 2}", "no repetition in RE2"),
        ("a{02}", "no repetition in RE2"),
        ("(?x)a b", "flag"),
        ("(?-u:a)", "flag"),
        ("[a[b]]", "class within a class"),
        ("[a-z&&[^b]]", "&&"),
        ("[a--b]", "&&"),
        ("\\p{Greek}", "general category"),
        ("\\p{sc=Greek}", "general category"),
        ("\\u0041", "escape"),
        ("\\U00000041", "escape"),
        ("/\u{263a}", "not ASCII"),
        ("[^\u{e9}]", "not ASCII"),
        ("\\x{263a}", "not ASCII"),
        ("\\xff", "not ASCII"),
        ("\\b{start}a", "start of a word"),
        ("\\<a\\>", "start of a word"),
    ];

    #[test]
    fn what_re2_takes_is_taken() {
        for good in GOOD {
            assert_eq!(check(good, 32), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_re2_refuses_or_reads_otherwise_is_refused_in_words() {
        for (bad, words) in BAD {
            assert!(regex::Regex::new(bad).is_ok(), "{bad} is none of Rust's either");
            let reason = check(bad, 32).expect_err(bad);
            assert!(reason.contains(words), "{bad}: {reason}");
        }
    }
}
