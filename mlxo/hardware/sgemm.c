/* cblas_sgemm for libmlx.so, preloaded into a runner by mlxo/hardware/blas.py (Linux without a GPU).
 *
 * The mlx-cpu wheel is linked to the reference BLAS. numpy's wheel carries OpenBLAS with 64-bit integers under
 * names of its own, so all that is missing is this one function. LIBRARY is the path of that OpenBLAS.
 *
 * OpenBLAS is kept on one thread and the product is cut into pieces for threads of our own. Its own threads wait
 * for one another by sched_yield(), and when anything else wants a core each product then takes whole time slices
 * (15 ms instead of 0.2). Here the caller works through the pieces that no other thread has taken: a late
 * helper costs nothing. One to three rows (the decode of a small batch) go to sgemv, which reads the weights
 * once where sgemm packs a copy first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
enum { MAX_THREADS = 16, PIECES_PER_THREAD = 4, MIN_PIECE = 64, GEMV_ROWS = 3, SPINS = 4000 };
static const double WORTH_SHARING = 2.5e5; /* multiply-adds; below it one thread is done before another wakes */

typedef void Gemm(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                  float, float *, int64_t);
typedef void Gemv(int, int, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float, float *,
                  int64_t);

typedef struct {
    int order, trans_a, trans_b;
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t lda;
    const float *b;
    int64_t ldb;
    float beta;
    float *c;
    int64_t ldc;
} Product;

static Gemm *gemm;
static Gemv *gemv;
static int threads = 1;
static pthread_once_t opened = PTHREAD_ONCE_INIT;

/* The one shared product. `owner` is held while its pieces run; `ticket` is generation << 32 | pieces not yet
 * taken. Whoever takes a piece has read the ticket of a product that cannot end before that piece does, so
 * `product`, `piece` and `by_columns` stand still until it is done. */
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;
static Product product;
static int64_t piece;
static int by_columns;
static _Atomic uint64_t ticket;
static atomic_int running;    /* pieces not yet finished; the owner sleeps on it */
static atomic_int generation; /* helpers sleep on it */
static atomic_int sleepers;
static atomic_int owner_sleeps;

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(atomic_int *word, int value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_int *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void multiply(const Product *p) {
    if (p->m > GEMV_ROWS || p->trans_a != NO_TRANS || p->order != ROW_MAJOR) {
        gemm(p->order, p->trans_a, p->trans_b, p->m, p->n, p->k, p->alpha, p->a, p->lda, p->b, p->ldb, p->beta, p->c,
             p->ldc);
        return;
    }
    for (int64_t i = 0; i < p->m; i++) {
        const float *x = p->a + i * p->lda;
        float *y = p->c + i * p->ldc;
        if (p->trans_b == TRANS)
            gemv(ROW_MAJOR, NO_TRANS, p->n, p->k, p->alpha, p->b, p->ldb, x, 1, p->beta, y, 1);
        else
            gemv(ROW_MAJOR, TRANS, p->k, p->n, p->alpha, p->b, p->ldb, x, 1, p->beta, y, 1);
    }
}

static void run_piece(int64_t index) {
    Product p = product;
    int64_t from = index * piece, whole = by_columns ? p.n : p.m;
    int64_t size = whole - from < piece ? whole - from : piece;
    if (by_columns) {
        p.n = size;
        p.b += p.trans_b == TRANS ? from * p.ldb : from;
        p.c += from;
    } else {
        p.m = size;
        p.a += p.trans_a == TRANS ? from : from * p.lda;
        p.c += from * p.ldc;
    }
    multiply(&p);
}

/* Take one piece and run it; 0 when none is left. */
static int take(void) {
    uint64_t seen = atomic_load(&ticket);
    while ((uint32_t)seen != 0) {
        if (!atomic_compare_exchange_weak(&ticket, &seen, seen - 1))
            continue;
        run_piece((int64_t)(uint32_t)seen - 1);
        if (atomic_fetch_sub(&running, 1) == 1 && atomic_load(&owner_sleeps))
            futex_wake(&running, 1);
        return 1;
    }
    return 0;
}

static void *help(void *unused) {
    (void)unused;
    for (;;) {
        while (take())
            ;
        int seen = atomic_load(&generation);
        for (int spin = 0; spin < SPINS && (uint32_t)atomic_load(&ticket) == 0; spin++)
            pause_cpu();
        atomic_fetch_add(&sleepers, 1);
        if ((uint32_t)atomic_load(&ticket) == 0)
            futex_wait(&generation, seen);
        atomic_fetch_sub(&sleepers, 1);
    }
    return NULL;
}

static void share(const Product *p) {
    int64_t whole = p->n >= p->m ? p->n : p->m;
    int64_t wanted = (int64_t)threads * PIECES_PER_THREAD;
    product = *p;
    by_columns = p->n >= p->m;
    piece = (whole + wanted - 1) / wanted;
    piece = piece < MIN_PIECE ? MIN_PIECE : (piece + 15) / 16 * 16;
    int64_t count = (whole + piece - 1) / piece;
    atomic_store(&running, (int)count);
    int turn = atomic_load(&generation) + 1;
    atomic_store(&ticket, (uint64_t)(uint32_t)turn << 32 | (uint64_t)count);
    atomic_store(&generation, turn); /* after the ticket: who sees this turn does not sleep through it */
    if (atomic_load(&sleepers))
        futex_wake(&generation, count < threads ? (int)count - 1 : threads - 1);
    while (take())
        ;
    int left;
    for (int spin = 0; (left = atomic_load(&running)) != 0; spin++) {
        if (spin < SPINS) {
            pause_cpu();
            continue;
        }
        atomic_store(&owner_sleeps, 1);
        futex_wait(&running, left);
        atomic_store(&owner_sleeps, 0);
    }
}

static void *symbol(void *library, const char *name) {
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) {
        fprintf(stderr, "mlxo: no fast BLAS: %s; restart mlxo, or set MLXO_BLAS=off\n", dlerror());
        abort();
    }
    return found;
}

/* On the first product, not at start: compilers and other children that inherit the preload stay light. */
static void open_library(void) {
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    gemm = (Gemm *)symbol(library, "scipy_cblas_sgemm64_");
    gemv = (Gemv *)symbol(library, "scipy_cblas_sgemv64_");
    int started = 1;
    pthread_t thread;
    while (started < threads && pthread_create(&thread, NULL, help, NULL) == 0) {
        pthread_detach(thread);
        started++;
    }
    threads = started;
}

/* OPENBLAS_NUM_THREADS is the number of our threads; OpenBLAS itself, numpy's included, is told one. Children
 * of this process get no preload: it is ours when it is the first entry, as blas.py writes it. */
__attribute__((constructor)) static void start(void) {
    const char *wanted = getenv("OPENBLAS_NUM_THREADS");
    threads = wanted ? atoi(wanted) : 1;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    const char *preload = getenv("LD_PRELOAD");
    const char *rest = preload ? strchr(preload, ':') : NULL;
    if (rest)
        setenv("LD_PRELOAD", rest + 1, 1);
    else
        unsetenv("LD_PRELOAD");
}

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    pthread_once(&opened, open_library);
    Product p = {order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc};
    if (threads < 2 || order != ROW_MAJOR || (double)m * n * k < WORTH_SHARING || pthread_mutex_trylock(&owner)) {
        multiply(&p);
        return;
    }
    share(&p);
    pthread_mutex_unlock(&owner);
}
