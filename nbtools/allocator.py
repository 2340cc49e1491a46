"""PyTorch's caching allocator for CUDA, without CUDA: what a sequence of requests makes it take from the card.

Design choices
- Follows the default settings of c10/cuda/CUDACachingAllocator.cpp (torch 2.10 to 2.14): sizes rounded up to 512 bytes;
  requests up to 1 MiB from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, larger ones from segments of their
  own, rounded up to 2 MiB. The smallest free block that is large enough is taken, the lowest address of equal ones.
- A block is split if more than 1 MiB of it is left over (512 bytes in the small pool); what is not split counts as
  allocated. Free neighbours in a segment are merged. Segments are kept.
- One stream, a card that is never full: the real allocator gives cached segments back before it gives up.
"""

from bisect import bisect_left, insort

MIB = 2**20
SMALL, LARGE = MIB, 10 * MIB  # up to here: small pool, shared segments


class Block:
    """`size` bytes at `start`, with its neighbours in the segment; `free` says whether it is in the pool."""

    __slots__ = ("after", "before", "free", "size", "small", "start")

    def __init__(self, start, size, small):
        self.start, self.size, self.small = start, size, small
        self.before = self.after = None
        self.free = False


class Rounding:
    """Blocks of whole 512 bytes and nothing else: no pools, so nothing is reserved."""

    def take(self, size):
        """A Block for `size` bytes."""
        return Block(0, rounded(size), True)

    def give(self, block):
        """Nothing: no block is used again."""


def rounded(size):
    """`size` bytes as whole blocks of 512, at least one."""
    return max(512, -(-size // 512) * 512)


class CachingAllocator:
    """As Rounding, with pools; `allocated` and `reserved` in bytes. Segments stay, so reserved is its own peak."""

    def __init__(self):
        self.allocated = self.reserved = 0
        self.pools = {True: [], False: []}  # sorted (size, start, block)

    def take(self, size):
        """A Block for `size` bytes, out of the pool or of a new segment."""
        size = rounded(size)
        small = size <= SMALL
        pool = self.pools[small]
        at = bisect_left(pool, (size,))
        if at < len(pool):
            block = pool.pop(at)[2]
        else:
            segment = 2 * MIB if small else 20 * MIB if size < LARGE else -(-size // (2 * MIB)) * 2 * MIB
            block = Block(self.reserved, segment, small)
            self.reserved += segment
        left = block.size - size
        if left >= 512 if small else left > SMALL:
            rest = Block(block.start + size, left, small)
            rest.before, rest.after, block.after, block.size = block, block.after, rest, size
            if rest.after:
                rest.after.before = rest
            self._offer(rest)
        block.free = False
        self.allocated += block.size
        return block

    def give(self, block):
        """Back to the pool, in one with its free neighbours."""
        self.allocated -= block.size
        before, after = block.before, block.after
        if before and before.free:
            self._withdraw(before)
            before.size += block.size
            before.after = after
            if after:
                after.before = before
            block = before
        if after and after.free:
            self._withdraw(after)
            block.size += after.size
            block.after = after.after
            if after.after:
                after.after.before = block
        self._offer(block)

    def _offer(self, block):
        block.free = True
        insort(self.pools[block.small], (block.size, block.start, block))

    def _withdraw(self, block):
        pool = self.pools[block.small]
        del pool[bisect_left(pool, (block.size, block.start))]
        block.free = False
