/* clusir: restores photographs with a clusir ONNX model. The plain C interface.
 *
 *   clusir_model* model = NULL;
 *   if (clusir_open("tiny.onnx", NULL, &model) != CLUSIR_OK) { puts(clusir_last_error()); return 1; }
 *   clusir_image in  = {pixels, width, height, 3, CLUSIR_U8, 0};
 *   clusir_image out = {result, width, height, 3, CLUSIR_U8, 0};
 *   if (clusir_restore(model, &in, &out, NULL) != CLUSIR_OK) puts(clusir_last_error());
 *   clusir_close(model);
 *
 * No function throws. Every function that can fail returns a clusir_status and leaves one line for clusir_last_error()
 * of the same thread. A model may be used by any number of threads at once; images, options and cancel tokens are the
 * caller's.
 *
 * Structs that begin with struct_size grow at their end in later versions: the library takes every size that a header
 * has ever declared, and refuses all others.
 */
#ifndef CLUSIR_H
#define CLUSIR_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(CLUSIR_SHARED)
#ifdef CLUSIR_BUILDING
#define CLUSIR_API __declspec(dllexport)
#else
#define CLUSIR_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define CLUSIR_API __attribute__((visibility("default")))
#else
#define CLUSIR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define CLUSIR_VERSION "0.1.0"

typedef enum clusir_status {
    CLUSIR_OK = 0,
    CLUSIR_FAILED = 1,           /* the back end failed while it ran the model */
    CLUSIR_INVALID_ARGUMENT = 2, /* the request is wrong: a null pointer, a zero size, a stride that is too short */
    CLUSIR_NO_BACKEND = 3, /* the back end or device that was asked for is not there; nothing else is used instead */
    CLUSIR_BAD_MODEL = 4,  /* the file is not a clusir model, or its metadata contradicts its graph */
    CLUSIR_OUT_OF_MEMORY = 5,
    CLUSIR_CANCELLED = 130 /* the progress callback or the cancel token stopped the run */
} clusir_status;

/* Samples of one channel. U8 and U16 (native byte order) span 0..1 as 0..255 and 0..65535; F32 is 0..1 as it is: other
 * values are refused in `in`, alpha's too, and clipped in `out`. */
typedef enum clusir_type { CLUSIR_U8 = 1, CLUSIR_U16 = 2, CLUSIR_F32 = 4 } clusir_type;

/* Rows of interleaved pixels. `channels`: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (a model of one channel
 * takes 1 and 2). Grey is given to a model of colours three times, and its answer averaged. Alpha is copied, scaled
 * where the types differ, and never restored. `stride_bytes` is the distance between two rows, at least width *
 * channels * sizeof(sample) and a multiple of the sample size; 0 means rows without gaps. `data` is aligned to the
 * sample size. */
typedef struct clusir_image {
    void* data;
    uint32_t width, height;
    uint32_t channels;
    clusir_type type;
    size_t stride_bytes;
} clusir_image;

typedef struct clusir_model clusir_model;
typedef struct clusir_cancel clusir_cancel;

/* How to open a model. Start from {.struct_size = sizeof(clusir_open_options)}: zero means the default everywhere. */
typedef struct clusir_open_options {
    size_t struct_size;
    const char* backend; /* "auto" (default: ncnn for a .param file; else OpenVINO where it was built in, else ONNX
                            Runtime), "ort", "openvino", "ncnn" */
    const char* device;  /* "cpu" (default), in any case; OpenVINO also takes its own device names, such as "GPU" */
    int32_t threads;     /* threads inside the back end; 0: the back end decides */
    const char* ort_library; /* path of libonnxruntime.so, .dylib or onnxruntime.dll; NULL: $CLUSIR_ORT_LIBRARY, then
                                the loader's search path */
    const void* weights; /* clusir_open_memory: the file that `graph` keeps its weights in (NAME.onnx.data); NULL: it
                            holds them. The bytes are not needed after the call */
    size_t weights_bytes;
    const void* router_weights; /* the same of `router`; NULL: they are in `weights` too */
    size_t router_weights_bytes;
} clusir_open_options;

/* What a model says of itself. Start from {.struct_size = sizeof(clusir_spec)}. Strings belong to the model. */
typedef struct clusir_spec {
    size_t struct_size;
    const char* name;
    const char* precision; /* fp32, fp16, int8 */
    const char* backend;   /* "ort", "openvino" or "ncnn": the one that runs it; "runner": the caller's own */
    uint32_t channels, tile_px, halo_px;
    uint32_t levels;         /* routed levels; 0: a model without routing */
    uint32_t posterior_size; /* sum of the clusters of all levels */
    uint32_t gate_size;      /* sum of the experts of all levels */
    uint32_t top_k;
    uint32_t statistics; /* pooled values that the tiles of a picture share; 0: none */
    uint32_t static_px, multiple_of,
        minimum_px;                /* heights and widths that the graph takes; static_px 0: any that fits */
    double value_low, value_high;  /* what black and white are as the model's numbers */
    const char* checkpoint_sha256; /* of the weights, hex; "" where the model does not say */
    uint32_t scale;                /* how many times as wide and high the answer is */
    uint32_t families;             /* families of degradations that may be mended or not; 0: the model cannot be told */
    uint32_t maximum_px;           /* the largest height and width that the graph takes; 0: there is none */
} clusir_spec;

/* Called before the first tile (done 0) and after every tile, on the thread that called clusir_restore. Nonzero stops;
 * after the last tile (done == total) the picture is complete and the answer changes nothing. */
typedef int (*clusir_progress)(void* user, uint32_t done, uint32_t total);

/* A map that a network takes beside the picture, such as a mask: `name` as the model names it (the field "maps" of its
 * metadata), `image` as wide and high as the picture, of any of its types and channels (the mean of the colours is
 * taken), or NULL: `value`, 0..1, everywhere. */
typedef struct clusir_map {
    const char* name;
    const clusir_image* image;
    float value;
} clusir_map;

/* A number that a network takes beside the picture, such as a noise level: `name` as the model names it (the field
 * "numbers" of its metadata), `value` within its range ("number_ranges"). */
typedef struct clusir_number {
    const char* name;
    double value;
} clusir_number;

/* How to run. `fix` and the strengths of families need a model with families and its two graphs; an overall strength
 * works with any. Strength 0 copies `in`, runs nothing, and fills posterior, gate and evidence with zeros. Start from
 * {.struct_size = sizeof(clusir_run_options)}. */
typedef struct clusir_run_options {
    size_t struct_size;
    clusir_progress progress;
    void* user;
    const clusir_cancel* cancel; /* may be cancelled from any thread; looked at between tiles */
    float* posterior;            /* NULL, or room for posterior_size floats: the routing, shared by all tiles */
    float* gate;                 /* NULL, or room for gate_size floats */
    const char* fix;      /* which degradations may be mended: NULL or "auto", "all", or families: "noise,jpeg" */
    const char* strength; /* NULL (1), or text in 0..1: "0.8" blends with `in`, "noise=0.6" is a family's own */
    float* evidence;      /* NULL, or room for families floats: how likely each family is in the picture */
    int32_t exact_statistics; /* of a network that pools over the whole picture: 0 pools windows of it, 1 all of it */
    const clusir_map* maps; /* NULL, or map_count of them; a map of the model that is not among them has its default,
                             * and "alpha" is the picture's own where it has one */
    size_t map_count;
    const clusir_number* numbers; /* NULL, or number_count of them; a number that is not among them has its default */
    size_t number_count;
} clusir_run_options;

/* Opens a model file; `path` is UTF-8. What its graphs keep their weights in (NAME.onnx.data) lies beside them. With NAME.tile.onnx and NAME.router.onnx beside NAME.onnx (for NAME.int8.onnx:
 * NAME.int8.tile.onnx and NAME.router.onnx) the routing of a picture is shared by its tiles; without them every tile
 * routes itself. Of a network that pools over the whole picture, NAME.tile.onnx and NAME.statistics.onnx share what is
 * pooled; without them only pictures of one tile are restored. `options` may be NULL. */
CLUSIR_API clusir_status clusir_open(const char* path, const clusir_open_options* options, clusir_model** model);

/* The same from memory. `graph` holds a tile graph (then `router` holds its router or statistics graph) or a whole graph
 * (then `router` is NULL). The bytes are not needed after the call. */
CLUSIR_API clusir_status clusir_open_memory(const void* graph, size_t graph_bytes, const void* router,
                                            size_t router_bytes, const clusir_open_options* options,
                                            clusir_model** model);

/* Runs one tile in a runtime of the caller's: `in` and `out` are float32, 1 x channels x side x side, or with
 * `channels_last` 1 x side x side x channels; `out` has scale x side. Nonzero: it failed. */
typedef int (*clusir_tile)(void* user, const float* in, float* out);

/* Start from {.struct_size = sizeof(clusir_runner)}. `run` is called on the threads that call clusir_restore, one at a
 * time; `user` must live as long as the model. */
typedef struct clusir_runner {
    size_t struct_size;
    clusir_tile run;
    void* user;
    int32_t channels_last;
} clusir_runner;

/* A model that the caller runs, such as LiteRT's or Core ML's. `description`: the text of the file model.json, which
 * clusir-export --target litert, coreml, mnn or ncnn writes beside the model. */
CLUSIR_API clusir_status clusir_open_runner(const char* description, const clusir_runner* runner, clusir_model** model);

/* NULL is allowed. No other thread may still use the model. */
CLUSIR_API void clusir_close(clusir_model* model);

CLUSIR_API clusir_status clusir_get_spec(const clusir_model* model, clusir_spec* spec);
/* The size of one level's posterior and gate; 0 where there is no such level. */
CLUSIR_API uint32_t clusir_level_clusters(const clusir_model* model, uint32_t level);
CLUSIR_API uint32_t clusir_level_experts(const clusir_model* model, uint32_t level);
/* What damage the cluster mostly meant on labelled data; "" where the model does not say. */
CLUSIR_API const char* clusir_cluster_label(const clusir_model* model, uint32_t level, uint32_t cluster);
/* A family's name ("" where there is none such), and the evidence from which on it is mended unasked. */
CLUSIR_API const char* clusir_family(const clusir_model* model, uint32_t family);
CLUSIR_API double clusir_family_threshold(const clusir_model* model, uint32_t family);
/* The raw JSON of one metadata field, for example "checkpoint_sha256"; NULL where there is none. */
CLUSIR_API const char* clusir_metadata(const clusir_model* model, const char* field);

/* Restores `in` into `out`: `scale` times the width and height, the same channels; the sample types may differ; memory
 * must not overlap. Where scale is not 1, alpha is enlarged bicubically.
 * Any size of picture: tiles with halo, blended; the routing is computed once and shared. After an error or a cancelled
 * run the pixels of `out` are unspecified. `options` may be NULL. */
CLUSIR_API clusir_status clusir_restore(clusir_model* model, const clusir_image* in, const clusir_image* out,
                                        const clusir_run_options* options);

CLUSIR_API clusir_cancel* clusir_cancel_new(void); /* NULL where memory is out */
CLUSIR_API void clusir_cancel_now(clusir_cancel* cancel);
CLUSIR_API void clusir_cancel_free(clusir_cancel* cancel);

/* One line about this thread's last failure; "" before the first one. Valid until this thread's next call. */
CLUSIR_API const char* clusir_last_error(void);
/* The back ends that were built in, separated by spaces. */
CLUSIR_API const char* clusir_backends(void);

#ifdef __cplusplus
}
#endif
#endif
