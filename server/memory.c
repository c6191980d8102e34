// memcpy, memmove and memcmp for x86-64. Those of musl copy all bytes by `rep movsq`, which takes tens of cycles to start, and
// most of the 84 copies of a request have less than 300 bytes. They compare byte by byte, which are 8 % of the instructions of
// a request to a component of WASI 0.3, and 4 % of a start's. The copies below save 4 % of a request's CPU time.
//
// SSE2 is part of every x86-64 CPU. All loads of a short copy come before its stores, so that source and destination may
// overlap.

#include <emmintrin.h>
#include <stddef.h>
#include <stdint.h>

// Size from which `rep movsq` is as fast as the loop.
#define LONG 1024
// It takes twice as long as the loop if the destination's offset in a page of 4 KiB is above the source's by less than this
// many bytes: 380 ns instead of 180 for the 9.7 KB of constants of each new sandbox, 39 µs instead of 23 for 1 MB (Zen 4).
#define ALIAS 32
// Size from which a copy goes past the caches. The initial memory of a component in JavaScript is copied so, if it stays resident,
// and a request reads little of it: 9.5 MB take 360 to 510 µs, and 740 to 950 by `rep movsq` or by the loop (Zen 4). If all is
// read afterwards, both take as long together at this size.
#define HUGE (8 << 20)

typedef uint16_t __attribute__((may_alias, aligned(1))) u16;
typedef uint32_t __attribute__((may_alias, aligned(1))) u32;
typedef uint64_t __attribute__((may_alias, aligned(1))) u64;

static inline __m128i load(const char *from) { return _mm_loadu_si128((const __m128i *)from); }
static inline void store(char *to, __m128i bytes) { _mm_storeu_si128((__m128i *)to, bytes); }

// Copies the first and the last bytes as one value each; they overlap in the middle.
#define COPY_ENDS(type)                                     \
    do {                                                    \
        type first = *(const type *)from;                   \
        type last = *(const type *)(from + n - sizeof last); \
        *(type *)to = first;                                \
        *(type *)(to + n - sizeof last) = last;             \
    } while (0)

// Copies up to 64 bytes.
static inline void copy_short(char *to, const char *from, size_t n)
{
    if (n > 32) {
        __m128i a = load(from), b = load(from + 16), c = load(from + n - 32), d = load(from + n - 16);
        store(to, a), store(to + 16, b), store(to + n - 32, c), store(to + n - 16, d);
    } else if (n > 16) {
        __m128i first = load(from), last = load(from + n - 16);
        store(to, first), store(to + n - 16, last);
    } else if (n >= 8) {
        COPY_ENDS(u64);
    } else if (n >= 4) {
        COPY_ENDS(u32);
    } else if (n >= 2) {
        COPY_ENDS(u16);
    } else if (n == 1) {
        *to = *from;
    }
}

// Copies 64 bytes at an offset.
static inline void copy_block(char *to, const char *from, size_t at)
{
    __m128i a = load(from + at), b = load(from + at + 16), c = load(from + at + 32), d = load(from + at + 48);
    store(to + at, a), store(to + at + 16, b), store(to + at + 32, c), store(to + at + 48, d);
}

// Copies at least 64 bytes, past the caches. Whole lines of 64 bytes are written without being read before.
static void copy_uncached(char *to, const char *from, size_t n)
{
    size_t at = 64 - ((uintptr_t)to & 63);
    copy_block(to, from, 0);
    for (; at + 64 < n; at += 64) {
        __m128i *line = (__m128i *)(to + at);
        _mm_prefetch(from + at + 1024, _MM_HINT_NTA);
        __m128i a = load(from + at), b = load(from + at + 16), c = load(from + at + 32), d = load(from + at + 48);
        _mm_stream_si128(line, a), _mm_stream_si128(line + 1, b), _mm_stream_si128(line + 2, c), _mm_stream_si128(line + 3, d);
    }
    // Such stores are not ordered with others.
    _mm_sfence();
    copy_block(to, from, n - 64);
}

void *memcpy(void *restrict destination, const void *restrict source, size_t n)
{
    char *to = destination;
    const char *from = source;
    if (n <= 64) {
        copy_short(to, from, n);
    } else if (n >= HUGE) {
        copy_uncached(to, from, n);
    } else if (n < LONG || ((uintptr_t)to - (uintptr_t)from) % 4096 - 1 < ALIAS - 1) {
        size_t at = 0;
        for (; at + 64 < n; at += 64)
            copy_block(to, from, at);
        copy_block(to, from, n - 64);
    } else {
        // Aligned stores are faster, so the first 16 bytes are copied apart, and so are the last 8.
        size_t head = 16 - ((uintptr_t)to & 15), words = (n - head) / 8;
        store(to, load(from));
        *(u64 *)(to + n - 8) = *(const u64 *)(from + n - 8);
        to += head, from += head;
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    }
    return destination;
}

void *memmove(void *destination, const void *source, size_t n)
{
    char *to = destination;
    const char *from = source;
    if (n <= 64) {
        copy_short(to, from, n);
    } else if ((uintptr_t)to - (uintptr_t)from >= n && (uintptr_t)from - (uintptr_t)to >= n) {
        return memcpy(destination, source, n);
    } else if (to < from) {
        __m128i a = load(from + n - 64), b = load(from + n - 48), c = load(from + n - 32), d = load(from + n - 16);
        for (size_t at = 0; at + 64 < n; at += 64)
            copy_block(to, from, at);
        store(to + n - 64, a), store(to + n - 48, b), store(to + n - 32, c), store(to + n - 16, d);
    } else {
        __m128i a = load(from), b = load(from + 16), c = load(from + 32), d = load(from + 48);
        for (size_t at = n; at > 64; at -= 64)
            copy_block(to, from, at - 64);
        store(to, a), store(to + 16, b), store(to + 32, c), store(to + 48, d);
    }
    return destination;
}

// Returns the difference of the first bytes of two words that differ there, of which the lowest byte comes first.
static inline int difference(u64 left, u64 right)
{
    unsigned at = __builtin_ctzll(left ^ right) & ~7u;
    return (int)(left >> at & 0xff) - (int)(right >> at & 0xff);
}

// Returns the first and the last bytes of 4 to 8 as one word. They overlap in the middle.
static inline u64 ends(const char *from, size_t n)
{
    return *(const u32 *)from | (uint64_t)*(const u32 *)(from + n - 4) << 32;
}

int memcmp(const void *left, const void *right, size_t n)
{
    const char *a = left, *b = right;
    if (n >= 16) {
        for (size_t at = 0;;) {
            unsigned equal = _mm_movemask_epi8(_mm_cmpeq_epi8(load(a + at), load(b + at)));
            if (equal != 0xffff) {
                at += __builtin_ctz(~equal);
                return (unsigned char)a[at] - (unsigned char)b[at];
            }
            if (at == n - 16)
                return 0;
            // The last block overlaps the one before.
            at = at + 16 < n - 16 ? at + 16 : n - 16;
        }
    }
    if (n >= 8) {
        u64 first = *(const u64 *)a, other = *(const u64 *)b;
        if (first != other)
            return difference(first, other);
        first = *(const u64 *)(a + n - 8), other = *(const u64 *)(b + n - 8);
        return first == other ? 0 : difference(first, other);
    }
    if (n >= 4) {
        u64 first = ends(a, n), other = ends(b, n);
        return first == other ? 0 : difference(first, other);
    }
    for (size_t at = 0; at < n; at++) {
        if (a[at] != b[at])
            return (unsigned char)a[at] - (unsigned char)b[at];
    }
    return 0;
}
