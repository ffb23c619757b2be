//! Which tokens are of a run, and how many of them a step may delete: `--shard`
//! and `--max-delete` with their parsing. Pure.

use std::str::FromStr;

/// One of the disjoint parts of the tokens. Which part a token is in depends on
/// its `_id` alone, so that machines need not talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub index: u32,
    /// How many parts.
    pub count: u32,
}

impl Shard {
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// `K/N`, counted from 1; 0 is the same as N, so that 0-based indices fit.
    pub fn parse(text: &str) -> Option<Self> {
        let (k, n) = text.split_once('/')?;
        let (k, count): (u32, u32) = (digits(k)?, digits(n)?);
        (count > 0 && k <= count).then(|| Self { index: k.checked_sub(1).unwrap_or(count - 1), count })
    }

    /// Whether the token with this `ObjectId` is in the part.
    ///
    /// Fibonacci hashing of the last eight bytes, the writer's random value and
    /// its counter: the golden ratio spreads any run of counters evenly, also
    /// one in which every second `_id` went to a card.
    pub fn contains(self, object_id: [u8; 12]) -> bool {
        const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
        let [_, _, _, _, writer_and_counter @ ..] = object_id;
        let hash = u64::from_be_bytes(writer_and_counter).wrapping_mul(GOLDEN_RATIO);
        (u128::from(hash) * u128::from(self.count)) >> 64 == u128::from(self.index)
    }
}

/// The most tokens that one step may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxDelete {
    /// 20%, but never less than 3, or than 1 in a part of the tokens.
    Default,
    Count(usize),
    /// 0 to 100.
    Percent(usize),
}

impl MaxDelete {
    /// `N` or `P%`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => digits(percent).filter(|&percent| percent <= 100).map(Self::Percent),
            None => digits(text).map(Self::Count),
        }
    }

    /// The limit for a step that decides on `total` tokens.
    pub fn limit(self, total: usize, shard: Shard) -> usize {
        // Split by hundreds, so that no count overflows.
        let part = |percent: usize| total / 100 * percent + total % 100 * percent / 100;
        match self {
            Self::Default => part(20).max(if shard.count > 1 { 1 } else { 3 }),
            Self::Count(count) => count,
            Self::Percent(percent) => part(percent),
        }
    }
}

/// A number of plain digits: no sign, no blanks.
pub fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids as `writers` processes make them that write a card with each token.
    fn ids(writers: u32, tokens: u32) -> impl Iterator<Item = [u8; 12]> {
        (0..tokens).map(move |n| {
            let writer = u64::from(n % writers + 1).wrapping_mul(0x2545_F491_4F6C_DD1D);
            let [r0, r1, r2, r3, r4, s0, s1, s2] = writer.to_be_bytes();
            let start = u32::from_be_bytes([0, s0, s1, s2]);
            let [_, c0, c1, c2] = start.wrapping_add(n / writers * 2).to_be_bytes();
            let [t0, t1, t2, t3] = (1_700_000_000 + n).to_be_bytes();
            [t0, t1, t2, t3, r0, r1, r2, r3, r4, c0, c1, c2]
        })
    }

    #[test]
    fn shards_are_disjoint_complete_and_balanced() {
        for writers in [1, 3, 10, 40] {
            for count in [2, 3, 4, 5, 8] {
                let mut sizes = vec![0_u32; count as usize];
                for id in ids(writers, 10_000) {
                    let owners: Vec<u32> =
                        (0..count).filter(|&index| Shard { index, count }.contains(id)).collect();
                    assert_eq!(owners.len(), 1, "every id has one shard");
                    sizes[owners[0] as usize] += 1;
                }
                let mean = 10_000.0 / f64::from(count);
                for size in sizes {
                    let off = (f64::from(size) - mean).abs() / mean;
                    assert!(off <= 0.02, "{writers} writers, {count} shards: {size}");
                }
            }
        }
    }

    #[test]
    fn the_shard_of_an_id_never_changes() {
        let id = [0x69, 0x8d, 0xae, 0x70, 0x58, 0xe1, 0x0b, 0xc3, 0xf7, 0x64, 0xfd, 0xbf];
        let owner = (0..8).find(|&index| Shard { index, count: 8 }.contains(id));
        assert_eq!(owner, Some(6));
    }

    #[test]
    fn parts_are_counted_from_one_and_zero_is_the_last() {
        let table = [
            ("1/1", Some((0, 1))),
            ("0/1", Some((0, 1))),
            ("2/3", Some((1, 3))),
            ("3/3", Some((2, 3))),
            ("0/3", Some((2, 3))),
            ("4/3", None),
            ("0/0", None),
            ("1/0", None),
            ("1", None),
            ("/", None),
            ("1/2/3", None),
            ("+1/2", None),
            ("1/4294967296", None),
        ];
        for (text, expected) in table {
            assert_eq!(Shard::parse(text).map(|shard| (shard.index, shard.count)), expected, "{text}");
        }
    }

    #[test]
    fn the_delete_limit() {
        let part = Shard { index: 1, count: 2 };
        let table = [
            (MaxDelete::Default, 0, 3, 1),
            (MaxDelete::Default, 15, 3, 3),
            (MaxDelete::Default, 9, 3, 1),
            (MaxDelete::Default, 99, 19, 19),
            (MaxDelete::Default, 1000, 200, 200),
            (MaxDelete::Count(0), 1000, 0, 0),
            (MaxDelete::Count(7), 3, 7, 7),
            (MaxDelete::Percent(0), 1000, 0, 0),
            (MaxDelete::Percent(5), 19, 0, 0),
            (MaxDelete::Percent(50), 5, 2, 2),
            (MaxDelete::Percent(100), usize::MAX, usize::MAX, usize::MAX),
        ];
        for (max_delete, total, whole, in_part) in table {
            assert_eq!(max_delete.limit(total, Shard::WHOLE), whole, "{max_delete:?} of {total}");
            assert_eq!(max_delete.limit(total, part), in_part, "{max_delete:?} of {total} in a part");
        }
        for (text, expected) in [
            ("5", Some(MaxDelete::Count(5))),
            ("0", Some(MaxDelete::Count(0))),
            ("100%", Some(MaxDelete::Percent(100))),
            ("101%", None),
            ("%", None),
            ("-1", None),
            ("ten", None),
            ("", None),
        ] {
            assert_eq!(MaxDelete::parse(text), expected, "{text}");
        }
    }
}
