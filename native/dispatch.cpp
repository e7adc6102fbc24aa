// Which sets of kernels this build holds, which of them run on this processor, and the choice among them.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef ROOKERY_NEON
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

namespace rookery {

namespace generic {
void fill(Kernels& table);
}
#ifdef ROOKERY_X86
namespace avx2 {
void fill(Kernels& table);
}
namespace avx512 {
void fill(Kernels& table);
}
#endif
#ifdef ROOKERY_NEON
namespace neon {
void fill(Kernels& table);
}
#endif

namespace {

bool always() { return true; }

#ifdef ROOKERY_X86
// The compiler's own test asks the operating system too: registers that it does not save do not count.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

#ifdef ROOKERY_NEON
bool has_neon() {
#ifdef __linux__
    constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & dot_products) != 0;
#else
    return true;  // every Apple processor
#endif
}
#endif

struct Set {
    const char* name;
    bool (*runs)();
    void (*fill)(Kernels&);
};

constexpr Set SETS[] = {  // best first
#ifdef ROOKERY_X86
    {"avx512", has_avx512, avx512::fill},
    {"avx2", has_avx2, avx2::fill},
#endif
#ifdef ROOKERY_NEON
    {"neon", has_neon, neon::fill},
#endif
    {"generic", always, generic::fill},
};
constexpr int COUNT = sizeof SETS / sizeof *SETS;

// Tables of the sets that run here, the others nameless.
const Kernels* tables() {
    static const struct Tables {
        Kernels all[COUNT] = {};
        Tables() {
            for (int i = 0; i < COUNT; ++i)
                if (SETS[i].runs()) SETS[i].fill(all[i]);
        }
    } tables;
    return tables.all;
}

const Kernels& choose() {
    const char* wanted = std::getenv("ROOKERY_ISA");
    std::string here;
    for (int i = 0; i < COUNT; ++i) {
        const Kernels& table = tables()[i];
        if (table.name == nullptr) continue;
        if (wanted == nullptr || *wanted == '\0') return table;
        if (std::string(wanted) == table.name) return table;
        here += (here.empty() ? "" : ", ") + std::string(table.name);
    }
    throw std::invalid_argument("ROOKERY_ISA is \"" + std::string(wanted) +
                                "\", which is not an instruction set that runs here; set it to one of " + here +
                                " or unset it for the best");
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();  // a choice that throws is made again at the next call
    return chosen;
}

const Kernels* kernels(const char* name) {
    for (int i = 0; i < COUNT; ++i) {
        const Kernels& table = tables()[i];
        if (table.name != nullptr && std::string(table.name) == name) return &table;
    }
    return nullptr;
}

}  // namespace rookery
