/*
 * Bulk copies: TMA boxes and plain rows, from global memory to shared and back.
 */
#include "block.h"

#include <algorithm>
#include <cstring>

namespace hopper_emulator
{

namespace
{

constexpr uint32_t MAP_MAGIC = 0x54A9u;

uint32_t box_bytes(const CUtensorMap &map)
{
    uint32_t bytes = (uint32_t)map.element_bytes;
    for (int i = 0; i < map.rank; i++)
        bytes *= map.box[i];
    return bytes;
}

/*
 * Where byte `address` of an unswizzled tile lies: the 16-byte column (bits 4-6, 4-5, 4) is XORed
 * with as many bits from bit 7 up.
 */
uint32_t swizzled(uint32_t address, hopper::Swizzle swizzle)
{
    const uint32_t columns = (uint32_t)hopper::swizzle_bytes(swizzle) / 16;
    return address ^ ((address >> 7 & (columns - 1)) << 4);
}

uint32_t alignment_of(hopper::Swizzle swizzle)
{
    return std::max(128u, 8u * (uint32_t)hopper::swizzle_bytes(swizzle));
}

void check_box(const CUtensorMap *map, uint32_t address, int rank, Position at)
{
    if (map->magic != MAP_MAGIC || map->rank != rank)
        stop(Kind::invalid_argument, at,
             "the tensor map is not one of rank " + std::to_string(rank));
    block->shared.at(address, box_bytes(*map), alignment_of(map->swizzle), at);
}

void check_row(uint32_t address, const void *global, uint32_t bytes, Position at)
{
    if (bytes % 16 != 0 || bytes == 0 || (uintptr_t)global % 16 != 0)
        stop(Kind::invalid_argument, at,
             "a bulk copy's addresses and bytes are multiples of 16, not " + std::to_string(bytes) +
                 " bytes at " + hex((uint32_t)(uintptr_t)global));
    block->shared.at(address, bytes, 16, at);
}

/*
 * Calls row(shared address of 16 bytes, global address, bytes of them inside the tensor, offset of
 * those in the 16) for each 16-byte piece of a box; global is null where all is outside.
 */
template <class Piece>
void for_each_piece(const CUtensorMap &map, const int *coordinates, uint32_t address, Piece piece)
{
    const uint32_t row_bytes = map.box[0] * (uint32_t)map.element_bytes;
    const uint32_t rows = box_bytes(map) / row_bytes;
    const int64_t limit = (int64_t)map.sizes[0] * map.element_bytes;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t rest = row;
        bool inside = true;
        uint8_t *global = map.base;
        for (int i = 1; i < map.rank; i++) {
            const int64_t c = coordinates[i] + (int64_t)(rest % map.box[i]);
            rest /= map.box[i];
            inside = inside && c >= 0 && c < (int64_t)map.sizes[i];
            global += inside ? c * (int64_t)map.strides[i] : 0;
        }
        for (uint32_t column = 0; column < row_bytes; column += 16) {
            const int64_t begin = (int64_t)coordinates[0] * map.element_bytes + column;
            const int64_t first = std::max<int64_t>(begin, 0);
            const int64_t last = std::min(begin + 16, limit);
            const uint32_t at = swizzled(address + row * row_bytes + column, map.swizzle);
            if (inside && last > first)
                piece(at, global + first, (uint32_t)(last - first), (uint32_t)(first - begin));
            else
                piece(at, (uint8_t *)nullptr, 0u, 0u);
        }
    }
}

/*
 * The manual lets expect_tx follow its copy within the phase. That is safe only if nothing else can
 * complete the phase in between, so here the bytes must have been announced first.
 */
void check_expected(const Mbarrier &mbarrier, const Load &load)
{
    int64_t under_way = load.bytes;
    for (const Load &other : block->loads)
        if (other.mbarrier == mbarrier.address && other.phase == mbarrier.phase)
            under_way += other.bytes;
    if (mbarrier.bytes < under_way)
        fault(Kind::missing_expect_tx, load.at,
              "copies of " + std::to_string(under_way) + " bytes are under way to mbarrier " +
                  hex(mbarrier.address) + ", whose phase " + std::to_string(mbarrier.phase) +
                  " expects " + std::to_string(mbarrier.bytes));
}

void issue(const Load &load)
{
    Mbarrier &mbarrier = find_mbarrier(load.mbarrier, true, load.at);
    Load one = load;
    one.phase = mbarrier.phase;
    check_expected(mbarrier, load);
    const View view = {mbarrier.actor, mbarrier.phase + 1, true, thread->knowledge.get()};
    block->shared.write(view, load.destination, load.bytes, load.at);
    counters().load_bytes += load.bytes;
    block->loads.push_back(one);
    if (options().schedule == Schedule::earliest)
        execute_load(block->loads.size() - 1);
    else /* anything may be there until the copy is complete */
        std::memset(block->shared.at(load.destination, load.bytes, 1, load.at), 0xFF, load.bytes);
}

void issue(Store &&store)
{
    if (thread->store_actor < 0)
        thread->store_actor = block->new_actor(ActorKind::store, (uint32_t)thread->index);
    const View view = {(uint16_t)thread->store_actor, (uint32_t)thread->stores.size(), true,
                       thread->knowledge.get()};
    block->shared.read(view, store.source, store.bytes, store.at);
    counters().store_bytes += store.bytes;
    thread->stores.back().push_back(std::move(store));
    if (options().schedule == Schedule::earliest) {
        read_store(thread->stores.back().back());
        write_store(thread->stores.back().back());
    }
}

} // namespace

void execute_load(size_t which)
{
    const Load load = block->loads[which];
    block->loads.erase(block->loads.begin() + (ptrdiff_t)which);
    const Position at = load.at;
    if (load.map.rank == 0)
        std::memcpy(block->shared.at(load.destination, load.bytes, 16, at), load.map.base,
                    load.bytes);
    else
        for_each_piece(load.map, load.coordinates, load.destination,
                       [&](uint32_t address, uint8_t *global, uint32_t bytes, uint32_t offset) {
                           uint8_t *shared = block->shared.at(address, 16, 16, at);
                           std::memset(shared, 0, 16);
                           if (global != nullptr) std::memcpy(shared + offset, global, bytes);
                       });
    complete_bytes(load.mbarrier, load.bytes);
}

void read_store(Store &store)
{
    const uint8_t *shared = block->shared.at(store.source, store.bytes, 16, store.at);
    store.data.assign(shared, shared + store.bytes);
    store.read = true;
}

void write_store(Store &store)
{
    if (store.map.rank == 0)
        std::memcpy(store.map.base, store.data.data(), store.bytes);
    else
        for_each_piece(store.map, store.coordinates, store.source,
                       [&](uint32_t address, uint8_t *global, uint32_t bytes, uint32_t offset) {
                           if (global != nullptr)
                               std::memcpy(global, &store.data[address - store.source] + offset,
                                           bytes);
                       });
    store.written = true;
}

/* The newest copy that a thread waits for. */
bool Block::run_waited_load()
{
    for (size_t i = loads.size(); i-- > 0;)
        if (!mbarriers.at(loads[i].mbarrier).waiting.empty()) {
            execute_load(i);
            return true;
        }
    return false;
}

void load_box(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int rank,
              const int *coordinates, Position at)
{
    check_box(map, destination, rank, at);
    Load load = {*map, {}, destination, box_bytes(*map), mbarrier, 0, at};
    std::copy(coordinates, coordinates + rank, load.coordinates);
    issue(load);
}

void store_box(const CUtensorMap *map, uint32_t source, int rank, const int *coordinates,
               Position at)
{
    check_box(map, source, rank, at);
    Store store = {*map, {}, source, box_bytes(*map), at, false, false, {}};
    std::copy(coordinates, coordinates + rank, store.coordinates);
    issue(std::move(store));
}

void wait_stores(int pending, bool read_only, Position)
{
    const size_t committed = thread->stores.size() - 1;
    const size_t done = committed > (size_t)pending ? committed - (size_t)pending : 0;
    for (size_t i = 0; i < done; i++)
        for (Store &store : thread->stores[i]) {
            if (!store.read) read_store(store);
            if (!store.written && !read_only) write_store(store);
        }
    if (thread->store_actor >= 0) {
        uint32_t &known = thread->learn().order[thread->store_actor];
        known = std::max(known, (uint32_t)done);
    }
}

} // namespace hopper_emulator

namespace hopper
{

using namespace hopper_emulator;

void bulk_load(uint32_t destination, const void *source, uint32_t bytes, uint32_t mbarrier,
               Position at)
{
    check_row(destination, source, bytes, at);
    CUtensorMap plain = {};
    plain.base = (uint8_t *)const_cast<void *>(source);
    issue(Load{plain, {}, destination, bytes, mbarrier, 0, at});
}

void bulk_store(void *destination, uint32_t source, uint32_t bytes, Position at)
{
    check_row(source, destination, bytes, at);
    CUtensorMap plain = {};
    plain.base = (uint8_t *)destination;
    issue(Store{plain, {}, source, bytes, at, false, false, {}});
}

void bulk_commit(Position)
{
    thread->stores.emplace_back();
}

cudaError_t make_tensor_map(CUtensorMap *map, const void *base, int element_bytes, int rank,
                            const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                            Swizzle swizzle)
{
    if (rank < 1 || rank > 5 || (element_bytes != 1 && element_bytes != 2 && element_bytes != 4) ||
        (uintptr_t)base % 16 != 0)
        return cudaErrorInvalidValue;
    *map = {MAP_MAGIC, rank, element_bytes, swizzle, (uint8_t *)const_cast<void *>(base), {},
            {},        {}};
    for (int i = 0; i < rank; i++) {
        map->sizes[i] = sizes[i];
        map->strides[i] = i == 0 ? (uint64_t)element_bytes : strides[i];
        map->box[i] = box[i];
        if (sizes[i] == 0 || sizes[i] > 1ull << 32 || box[i] == 0 || box[i] > 256 ||
            (i > 0 && (strides[i] % 16 != 0 || strides[i] >= 1ull << 40)))
            return cudaErrorInvalidValue;
    }
    const uint32_t row = box[0] * (uint32_t)element_bytes;
    if (row % 16 != 0 || (swizzle != Swizzle::none && row != (uint32_t)swizzle_bytes(swizzle)))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

} // namespace hopper
