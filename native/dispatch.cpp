// Which sets of kernels this build holds, which of them run on this processor, and the choice among them.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef ROOKERY_X86
#include <cpuid.h>
#endif
#if defined(ROOKERY_NEON) && defined(__linux__)
#include <sys/auxv.h>
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
// What CPUID and XGETBV say. Not the compiler's built-in test: compilers differ in the names that it knows.
struct Processor {
    unsigned c1 = 0, b7 = 0, c7 = 0, a71 = 0, saved = 0;
    Processor() {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (__get_cpuid(1, &a, &b, &c1, &d) == 0) return;
        if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d) != 0 && a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
        constexpr unsigned xgetbv = 1u << 27;
        if ((c1 & xgetbv) != 0) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    }
};
bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

bool has_avx2() {
    const Processor p;  // 0x6: the operating system saves the registers of AVX
    return all(p.saved, 0x6) && all(p.c1, 1u << 12 | 1u << 28 | 1u << 29) && all(p.b7, 1u << 5);  // FMA AVX F16C; AVX2
}
bool has_avx512() {
    const Processor p;  // 0xe0: and those of AVX-512
    return has_avx2() && all(p.saved, 0xe0) && all(p.b7, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) &&  // F DQ BW VL
           all(p.c7, 1u << 11) && all(p.a71, 1u << 5);                                                   // VNNI; BF16
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
