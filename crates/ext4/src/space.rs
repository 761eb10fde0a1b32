//! Which blocks are taken. Blocks are taken in order from a frontier; what is given back is taken first.
//!
//! The size of the file system is not known before the end, but where it has copies of its superblock is: at the start of
//! groups 0, 1 and the powers of 3, 5 and 7 (sparse_super). There the frontier leaves out the superblock and as many blocks
//! of group descriptors as the largest size needs.

use std::collections::BTreeMap;

use crate::GROUP_BLOCKS;

/// Is there a copy of the superblock in this group?
pub(crate) fn has_superblock(group: u32) -> bool {
    fn is_power_of(base: u32, mut value: u32) -> bool {
        while value > 1 && value.is_multiple_of(base) {
            value /= base;
        }
        value == 1
    }
    group <= 1 || [3, 5, 7].into_iter().any(|base| is_power_of(base, group))
}

/// Blocks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub start: u32,
    pub count: u32,
    /// Never written: they are a hole in the image file and read as zeros.
    pub fresh: bool,
}

/// The first block that was never taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frontier {
    next: u32,
    /// Blocks that are left out at the start of a group with a copy of the superblock.
    reserve: u32,
    /// No block from here on is taken.
    limit: u32,
}

impl Frontier {
    fn at(block: u32, reserve: u32, limit: u32) -> Self {
        let mut frontier = Self { next: block, reserve, limit };
        frontier.leave_out();
        frontier
    }

    fn leave_out(&mut self) {
        if self.next.is_multiple_of(GROUP_BLOCKS) && has_superblock(self.next / GROUP_BLOCKS) {
            self.next = self.next.saturating_add(self.reserve);
        }
    }

    /// A frontier that ends where a file system of so many groups does.
    pub(crate) fn limited_to(self, groups: u32) -> Self {
        Self { limit: groups.saturating_mul(GROUP_BLOCKS), ..self }
    }

    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn reserve(&self) -> u32 {
        self.reserve
    }

    /// Up to `want` blocks in a row. `None`: the limit is reached.
    pub(crate) fn take(&mut self, want: u32) -> Option<Run> {
        let room =
            self.limit.saturating_sub(self.next).min(GROUP_BLOCKS - self.next % GROUP_BLOCKS);
        let count = want.min(room);
        if count == 0 {
            return None;
        }
        let run = Run { start: self.next, count, fresh: true };
        self.next += count;
        self.leave_out();
        Some(run)
    }

    /// `count` blocks in a row, at most a group without its reserve, and what had to be skipped for that.
    pub(crate) fn take_whole(&mut self, count: u32) -> Option<(u32, Option<Run>)> {
        let end = self.next.checked_add(count)?;
        let copy = (self.next / GROUP_BLOCKS + 1..end.div_ceil(GROUP_BLOCKS))
            .find(|&group| has_superblock(group));
        let mut skipped = None;
        if let Some(group) = copy {
            let start = group * GROUP_BLOCKS;
            skipped = Some(Run { start: self.next, count: start - self.next, fresh: true });
            *self = Self::at(start, self.reserve, self.limit);
        }
        let start = self.next;
        let end = start.checked_add(count)?;
        if end > self.limit {
            return None;
        }
        *self = Self::at(end, self.reserve, self.limit);
        Some((start, skipped))
    }
}

#[derive(Debug)]
pub(crate) struct Space {
    pub frontier: Frontier,
    /// From the first block of a run of free blocks below the frontier to their number. No two runs touch.
    free: BTreeMap<u32, u32>,
    used_blocks: u64,
}

impl Space {
    /// `reserve`: the superblock and the most that its descriptors may take. `limit`: blocks of the largest file system.
    pub(crate) fn new(reserve: u32, limit: u32) -> Self {
        Self { frontier: Frontier::at(0, reserve, limit), free: BTreeMap::new(), used_blocks: 0 }
    }

    pub(crate) fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// Runs of free blocks below the frontier: first block and number.
    pub(crate) fn free_runs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.free.iter().map(|(&start, &count)| (start, count))
    }

    /// Between 1 and `want` blocks in a row, those from `goal` on if they are free. `None`: the limit is reached.
    pub(crate) fn allocate(&mut self, goal: u32, want: u32) -> Option<Run> {
        let start = if self.free.contains_key(&goal) {
            Some(goal)
        } else if goal == self.frontier.next() {
            None
        } else {
            self.free.first_key_value().map(|(&start, _)| start)
        };
        let run = match start.and_then(|start| self.free.remove_entry(&start)) {
            Some((start, room)) => {
                let count = want.min(room);
                if count < room {
                    self.free.insert(start + count, room - count);
                }
                Run { start, count, fresh: false }
            }
            None => match self.frontier.take(want) {
                Some(run) => run,
                None => {
                    // The goal was the limit.
                    let start = self.free.first_key_value().map(|(&start, _)| start)?;
                    return self.allocate(start, want);
                }
            },
        };
        self.used_blocks += u64::from(run.count);
        Some(run)
    }

    /// Takes a run of the frontier that was placed elsewhere.
    pub(crate) fn advance(&mut self, frontier: Frontier, used_blocks: u64) {
        self.frontier = Frontier { limit: self.frontier.limit, ..frontier };
        self.used_blocks += used_blocks;
    }

    pub(crate) fn release(&mut self, start: u32, count: u32) {
        self.used_blocks -= u64::from(count);
        self.add_free(start, count);
    }

    /// Blocks below the frontier that were never taken become free ones.
    pub(crate) fn add_free(&mut self, start: u32, count: u32) {
        let (mut start, mut count) = (start, count);
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            (start, count) = (before, length + count);
        }
        if let Some(length) = self.free.remove(&(start + count)) {
            count += length;
        }
        self.free.insert(start, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_where_sparse_super_has_them() {
        let groups: Vec<u32> = (0..130).filter(|&group| has_superblock(group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn the_frontier_leaves_out_what_copies_of_the_superblock_may_take() {
        let mut space = Space::new(3, 4 * GROUP_BLOCKS);
        let mut runs = Vec::new();
        while let Some(run) = space.allocate(0, u32::MAX) {
            runs.push((run.start, run.count));
        }
        let group = GROUP_BLOCKS;
        let all = [
            (3, group - 3),
            (group + 3, group - 3),
            (2 * group, group),
            (3 * group + 3, group - 3),
        ];
        assert_eq!(runs, all);
    }

    #[test]
    fn released_blocks_are_joined_and_taken_first() {
        let mut space = Space::new(2, GROUP_BLOCKS);
        assert_eq!(space.allocate(0, 10), Some(Run { start: 2, count: 10, fresh: true }));
        space.release(2, 1);
        space.release(4, 1);
        space.release(3, 1);
        assert_eq!(space.free_runs().collect::<Vec<_>>(), [(2, 3)]);
        assert_eq!(space.allocate(0, 2), Some(Run { start: 2, count: 2, fresh: false }));
        assert_eq!(space.allocate(4, 9), Some(Run { start: 4, count: 1, fresh: false }));
        assert_eq!(space.used_blocks(), 10);
    }

    #[test]
    fn a_file_goes_on_behind_its_end_even_if_blocks_before_it_are_free() {
        let mut space = Space::new(2, GROUP_BLOCKS);
        space.allocate(0, 10);
        space.release(2, 1);
        assert_eq!(space.allocate(12, 5), Some(Run { start: 12, count: 5, fresh: true }));
    }

    #[test]
    fn at_the_limit_what_was_released_is_still_taken() {
        let mut space = Space::new(2, GROUP_BLOCKS);
        space.allocate(0, GROUP_BLOCKS);
        space.release(5, 1);
        let goal = space.frontier.next();
        assert_eq!(space.allocate(goal, 9), Some(Run { start: 5, count: 1, fresh: false }));
        assert_eq!(space.allocate(goal, 9), None);
    }

    #[test]
    fn a_table_is_never_across_a_copy_of_the_superblock() {
        let mut frontier = Frontier::at(GROUP_BLOCKS - 10, 4, 8 * GROUP_BLOCKS);
        let skipped = Run { start: GROUP_BLOCKS - 10, count: 10, fresh: true };
        assert_eq!(frontier.take_whole(11), Some((GROUP_BLOCKS + 4, Some(skipped))));
        let mut frontier = Frontier::at(GROUP_BLOCKS - 10, 4, 8 * GROUP_BLOCKS);
        assert_eq!(frontier.take_whole(10), Some((GROUP_BLOCKS - 10, None)));
        assert_eq!(frontier.next(), GROUP_BLOCKS + 4);
        // Group 2 has none.
        let mut frontier = Frontier::at(2 * GROUP_BLOCKS - 10, 4, 8 * GROUP_BLOCKS);
        assert_eq!(frontier.take_whole(11), Some((2 * GROUP_BLOCKS - 10, None)));
    }
}
