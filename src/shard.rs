//! Which tokens belong to `--shard K/N`. Pure and stable: it depends on the
//! token's `_id` alone, so that machines need not talk to each other.

/// One of the disjoint parts of the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub index: u32,
    /// How many parts.
    pub count: u32,
}

impl Shard {
    /// All tokens.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

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
}
