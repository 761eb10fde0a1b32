//! The words of tar headers: numbers in their three forms, and the records of pax extended headers (POSIX.1-2017, pax,
//! "pax Extended Header"). Pure; every form that is not understood is refused.

use banger_ext4::Timestamp;

/// A field of a header: octal digits, blanks and NULs around them; or base 256 with the first bit set (GNU tar and
/// star), which can be negative. A field that nobody filled in is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    if let Some(&first) = field.first()
        && first & 0x80 != 0
    {
        // Two's complement; the first bit is the mark, the second the sign.
        let mut value: i128 = if first & 0x40 == 0 { 0 } else { -1 };
        value = value << 6 | i128::from(first & 0x3f);
        for &byte in &field[1..] {
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let blank = |byte: u8| byte == b' ' || byte == 0;
    let start = field.iter().position(|&byte| !blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(|&byte| blank(byte)).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Decimal digits and nothing else.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// `1234567890.25`, `-3.5`: seconds since 1970; what is finer than nanoseconds is cut off.
pub(crate) fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// The records of an extended header, `LENGTH KEY=VALUE\n` each, in their order. The value may hold any byte.
pub(crate) fn records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    // Some writers pad with NULs inside the size they tell.
    while bytes.iter().any(|&byte| byte != 0) {
        let blank = bytes.iter().take(20).position(|&byte| byte == b' ')?;
        let length = usize::try_from(decimal(&bytes[..blank])?).ok()?;
        let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        found.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Some(found)
}

/// libarchive's `LIBARCHIVE.xattr.` keys: `%41` is `A`.
pub(crate) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let hex = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let [high, low, tail @ ..] = rest else { return None };
            decoded.push(hex(high)? << 4 | hex(low)?);
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    Some(decoded)
}

/// RFC 4648, with or without padding, as libarchive writes values.
pub(crate) fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    let end = text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    for byte in &text[..end] {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits & 0xff) << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_octal_or_base_256_and_nothing_else() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"77777777777", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\0\x10\0\0\0\0", Some(0x10_0000_0000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"64x", None),
            (b"8", None),
            (b"-1", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn a_time_keeps_its_fraction_on_either_side_of_1970() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        for (text, time_then) in [
            ("0", at(0, 0)),
            ("4102444800.5", at(4_102_444_800, 500_000_000)),
            ("1.0000000019", at(1, 1)),
            ("-1.25", at(-2, 750_000_000)),
            ("-7", at(-7, 0)),
            ("1.", at(1, 0)),
            ("", None),
            ("1.5.5", None),
            (".5", None),
            ("+1", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), time_then, "{text}");
        }
    }

    #[test]
    fn a_record_is_as_long_as_it_says() {
        let good = b"12 a=b\nc=\n=\n6 x=y\n\0\0";
        let expected = [(&b"a"[..], &b"b\nc=\n="[..]), (b"x", b"y")];
        assert_eq!(records(good).unwrap(), expected);
        for bad in [
            &b"7 a=b\n"[..],
            b"99 a=b\n",
            b"6 a=b",
            b"5 a=b\n",
            b" a=b\n",
            b"x a=b\n",
            b"1 a=b\n",
            b"6 abc\n",
            b"00000000000000000000000006 a=b\n",
        ] {
            assert_eq!(records(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_libarchive_encodes_is_decoded() {
        assert_eq!(percent_decoded(b"user.a%3Db%25").unwrap(), b"user.a=b%");
        assert_eq!(percent_decoded(b"user.%4"), None);
        for (text, value) in [
            ("", &b""[..]),
            ("AQAAAgAgAAA", &[1, 0, 0, 2, 0, 0x20, 0, 0]),
            ("AQI=", &[1, 2]),
            ("AQ==", &[1]),
            ("+/8", &[0xfb, 0xff]),
        ] {
            assert_eq!(base64_decoded(text.as_bytes()).unwrap(), value, "{text}");
        }
        assert_eq!(base64_decoded(b"A*"), None);
    }
}
