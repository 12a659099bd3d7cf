// glibc's aligned allocation searches its free blocks for one that is larger by the alignment, so a block that PyTorch
// freed never serves the next request of the same size, and the heap grows. Ask for a plain block first: a freed one
// that was aligned still is.

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <malloc.h>

constexpr std::size_t LARGE = 1 << 16;

extern "C" int posix_memalign(void** out, std::size_t alignment, std::size_t bytes) noexcept {
    if (!alignment || alignment % sizeof(void*) || (alignment & (alignment - 1))) return EINVAL;
    void* block = bytes < LARGE ? nullptr : std::malloc(bytes);
    if (reinterpret_cast<std::uintptr_t>(block) % alignment) {
        std::free(block);
        block = nullptr;
    }
    if (!block) block = memalign(alignment, bytes);
    if (!block) return ENOMEM;
    *out = block;
    return 0;
}
